import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._factor.factor import Factor, promoted
from ._spectra.eigenpair import eig


def invariance_defect(factor: Factor) -> Float[Array, ""]:
    r"""Return $\lVert B\rVert_F^2/r$: how much of the dictionary's images lies outside of its span, on average.

    Zero exactly if the span is invariant, and equal to the mean squared residual of the eigenpairs if $A$ is normal.
    There is no eigenvalue problem in it: it is smooth wherever the functions are independent, also where it is zero.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][], inside of `jax.grad`, `jax.jit` or `jax.vmap` too.

    **Returns:** a scalar.

    !!! Example

        ```python
        jax.grad(lambda p: loss.invariance_defect(koopman_verify.factor(family(p), snapshots)))(parameters)
        ```
    """
    return _square_norm(factor.B) / factor.rank


def residual(factor: Factor) -> Float[Array, ""]:
    r"""Return the mean squared residual of the eigenpairs, $\frac1r\sum_j\lVert Bu_j\rVert^2$ with $\lVert u_j\rVert=1$.

    Differentiated through the eigenvectors, by the bordered systems of [`koopman_verify.eigenpair`][]: $O(r^4)$
    operations, and an error at multiple eigenvalues. For training, `invariance_defect` is the cheaper and smoother one.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].

    **Returns:** a scalar.

    **Raises:** a run-time error where a derivative is asked for and two eigenvalues cannot be told from each other.

    ??? cite "Reference"

        The first term of the loss of arXiv:2606.29083.

    !!! Example

        ```python
        loss.residual(koopman_verify.factor(dictionary, snapshots))
        ```
    """
    b, u = promoted(factor.B, eig(factor.A)[1])
    image = b @ u
    return jnp.sum(image.real**2 + image.imag**2) / factor.rank


def worst_defect(factor: Factor) -> Float[Array, ""]:
    r"""Return $\lVert B\rVert_2^2$, which no squared residual of an eigenpair exceeds.

    Smooth where the largest singular value is simple.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][].

    **Returns:** a scalar.

    !!! Example

        ```python
        loss.worst_defect(koopman_verify.factor(dictionary, snapshots))
        ```
    """
    return jnp.linalg.svd(factor.B, compute_uv=False)[0] ** 2


def log_condition(factor: Factor) -> Float[Array, ""]:
    r"""Return $\log(\lVert R_{11}\rVert_F^2/N) - \frac2N\log|\det R_{11}|$.

    The logarithm of the arithmetic over the geometric mean of the squared singular values of $W^{1/2}\Psi_X$: zero for
    orthonormal functions, infinite for dependent ones, smooth, where their largest over their smallest is not. It sees
    the average: one small singular value among many hardly moves it, see `log_frobenius_condition`.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][], without `rank_tol`.

    **Returns:** a scalar.

    **Raises:** `ValueError` if directions were left out of the factor.

    !!! Example

        ```python
        loss.log_condition(koopman_verify.factor(dictionary, snapshots))
        ```
    """
    r11 = _full(factor, "log_condition")
    diagonal = jnp.log(jnp.abs(jnp.diagonal(r11)))
    return jnp.log(_square_norm(r11) / factor.size) - 2 * jnp.mean(diagonal)


def log_frobenius_condition(factor: Factor) -> Float[Array, ""]:
    r"""Return $\log(\lVert R_{11}\rVert_F\lVert R_{11}^{-1}\rVert_F/N)$, smooth, and between $\log(\kappa/N)$ and $\log\kappa$.

    Unlike `log_condition` it follows the smallest singular value, so that a bound on it is one on the condition number
    $\kappa$ of $W^{1/2}\Psi_X$.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][], without `rank_tol`.

    **Returns:** a scalar.

    **Raises:** `ValueError` if directions were left out of the factor.

    !!! Example

        ```python
        loss.log_frobenius_condition(koopman_verify.factor(dictionary, snapshots))
        ```
    """
    r11 = _full(factor, "log_frobenius_condition")
    return (jnp.log(_square_norm(r11)) + jnp.log(_square_norm(factor.basis))) / 2 - jnp.log(float(factor.size))


def conditioned_defect(factor: Factor, *, weight: float = 1e-2, threshold: float = 1e3) -> Float[Array, ""]:
    r"""Return `invariance_defect` plus `weight` times what `log_frobenius_condition` exceeds $\log$ `threshold` by.

    What [`koopman_verify.train_dictionary`][] minimises. Without the second term functions may become dependent, and
    derivatives through the inverse of $R_{11}$ meaningless.

    **Arguments:**

    - `factor`: from [`koopman_verify.factor`][], without `rank_tol`.
    - `weight`, `threshold`: the strength of the penalty, and where it begins.

    **Returns:** a scalar.

    ??? cite "Reference"

        The form of the loss of arXiv:2606.29083, with smooth terms in place of the residuals and of $\log\kappa$.

    !!! Example

        ```python
        loss.conditioned_defect(koopman_verify.factor(dictionary, snapshots), threshold=300.0)
        ```
    """
    excess = jax.nn.relu(log_frobenius_condition(factor) - jnp.log(threshold))
    return invariance_defect(factor) + weight * excess


def _full(factor: Factor, name: str) -> Array:
    if factor.rank < factor.size:
        raise ValueError(
            f"`{name}` is infinite: `factor` kept {factor.rank} of {factor.size} dimensions, so its functions depend on "
            "each other"
        )
    return factor.R11


def _square_norm(a: Array) -> Array:
    return jnp.sum(a.real**2 + a.imag**2) if jnp.iscomplexobj(a) else jnp.sum(a**2)
