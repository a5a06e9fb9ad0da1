import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ._arguments import Scalar, finite, positive
from ._check import require


class Attenuation(eqx.Module):
    r"""The factors by which a step towards collapse multiplies each kind of perturbation of collapsed features.

    **Attributes:**

    - `within_span`: within a class, along the span of the class means: $\beta/(\beta+\tau)$, $\tau=\sqrt{\lambda_H/\lambda_W}$.
    - `within_complement`: within a class, orthogonal to it: $\beta/(\beta+\lambda_H)$.
    - `symmetric`: of the class means, changing their lengths and angles: $\beta/(\beta+4\lambda_H(1-c))$,
        $c=\sqrt{\lambda_H\lambda_W}$.
    - `rotation`: of the class means, rotating the frame: one.
    """

    within_span: Float[Array, "..."]
    within_complement: Float[Array, "..."]
    symmetric: Float[Array, "..."]
    rotation: Float[Array, "..."]


class BlockSpectrum(eqx.Module):
    """The singular values of the response of one class to perturbations of itself, and of another.

    **Attributes:**

    - `same`: singular values of the block of a class with itself, distinct ones, `[5]`.
    - `multiplicities`: how often each occurs; together `n d`.
    - `other`: the only nonzero singular value of the block of two classes.
    """

    same: Float[Array, " 5"]
    multiplicities: tuple[int, ...] = eqx.field(static=True)
    other: Float[Array, ""]


def attenuation(lam_W: Scalar, lam_H: Scalar, beta: Scalar) -> Attenuation:
    r"""Return the complete diagonalisation of the response of collapsed features, for every `beta`.

    Features $H$ near those of an earlier layer $H_0$ minimise the loss with best classifier plus
    $\frac{\beta}{2Kn}\lVert H - H_0\rVert^2$ (Tirer et al.). If $H_0$ is collapsed but for a small perturbation, the
    perturbation that remains in $H$ is linear in it, with these four eigenvalues; equal classes, $d \ge K$.

    **Arguments:**

    - `lam_W`, `lam_H`: strengths in the normalisation of Tirer et al., positive, with product below one.
    - `beta`: the strength of the link to the earlier layer, positive.

    **Returns:**

    A [`neuralcollapse.perturb.Attenuation`][].

    **Raises:**

    `ValueError` if a strength is not positive, or if $\lambda_W\lambda_H \ge 1$: then the minimum is zero.

    !!! Example

        ```python
        neuralcollapse.perturb.attenuation(0.5, 0.25, 1.0).within_span  # 0.5858
        ```

    ??? cite "Reference"

        Tirer, Huang, Niles-Weed, "Perturbation Analysis of Neural Collapse", arXiv:2210.16658. Their Theorem 4.2 is
        the expansion to first order in 1/beta; the eigenvalues for every beta are not in it.
    """
    lam_W, lam_H, beta = _strengths(lam_W, lam_H, beta)
    tau, c = jnp.sqrt(lam_H / lam_W), jnp.sqrt(lam_H * lam_W)
    return Attenuation(
        within_span=beta / (beta + tau),
        within_complement=beta / (beta + lam_H),
        symmetric=beta / (beta + 4 * lam_H * (1 - c)),
        rotation=jnp.ones_like(beta),
    )


def spectrum(
    lam_W: Scalar, lam_H: Scalar, beta: Scalar, *, num_classes: int, class_size: int, dim: int
) -> BlockSpectrum:
    r"""Return the singular values of the response between classes, with multiplicities.

    **Arguments:**

    - `lam_W`, `lam_H`, `beta`: as for [`neuralcollapse.perturb.attenuation`][].
    - `num_classes`, `class_size`, `dim`: $K$, $n$ and $d \ge K$.

    **Returns:**

    A [`neuralcollapse.perturb.BlockSpectrum`][].

    **Raises:**

    `ValueError` if `dim` is below `num_classes`.
    """
    if dim < num_classes or class_size < 1:
        raise ValueError(
            f"`dim` must be at least `num_classes`, and `class_size` at least one; got {dim}, {num_classes}, {class_size}."
        )
    a = attenuation(lam_W, lam_H, beta)
    same = jnp.stack([a.rotation, (1 + a.symmetric) / 2, a.symmetric, a.within_complement, a.within_span])
    rest = class_size - 1
    counts = (dim - num_classes, num_classes - 1, 1, rest * (dim - num_classes), rest * num_classes)
    return BlockSpectrum(same, counts, (1 - a.symmetric) / 2)


def collapsed_frame(R: Float[Array, "d K"], lam_W: Scalar, lam_H: Scalar) -> tuple[Array, Array]:
    r"""Return class means (by rows) and classifier of the collapsed minimum along a frame.

    **Arguments:**

    - `R`: orthonormal columns, `[d, K]`.
    - `lam_W`, `lam_H`: strengths in the normalisation of Tirer et al.

    **Returns:**

    `(means, W)`, both `[K, d]`: $\sqrt\rho\,R^\top$ with $\rho=(1-c)\sqrt{\lambda_W/\lambda_H}$, and
    $\sqrt{\lambda_H/\lambda_W}$ times that (their Theorem 2.1).
    """
    frame = _frame(R)
    lam_W, lam_H, _ = _strengths(jnp.asarray(lam_W, frame.dtype), jnp.asarray(lam_H, frame.dtype), 1.0)
    rho = (1 - jnp.sqrt(lam_W * lam_H)) * jnp.sqrt(lam_W / lam_H)
    means = jnp.sqrt(rho) * frame.T
    return means, jnp.sqrt(lam_H / lam_W) * means


def diagonal_response(
    lam_W: Scalar, lam_H: Scalar, beta: Scalar, R: Float[Array, "d K"], dH0: Float[Array, "K n d"]
) -> tuple[Float[Array, "K n d"], Float[Array, "K d"]]:
    r"""Return what remains of a perturbation of collapsed features, by its eigenvectors: no linear solve.

    **Arguments:**

    - `lam_W`, `lam_H`, `beta`: as for [`neuralcollapse.perturb.attenuation`][].
    - `R`: the frame of the class means, orthonormal columns, `[d, K]`.
    - `dH0`: the perturbation of every sample of every class, `[K, n, d]`.

    **Returns:**

    `(dH, dW)`: the response of the features and that of the classifier, `[K, n, d]` and `[K, d]`.
    """
    frame, change = _frame(R), _perturbation(dH0, R)
    a = attenuation(*(jnp.asarray(x, change.dtype) for x in (lam_W, lam_H, beta)))
    lam_W, lam_H = jnp.asarray(lam_W, change.dtype), jnp.asarray(lam_H, change.dtype)
    means = jnp.mean(change, axis=1)
    within = change - means[:, None, :]
    inside = within @ frame @ frame.T
    moved = a.within_span * inside + a.within_complement * (within - inside)
    # By columns: A0 = R' dHbar0 has a symmetric part, which is attenuated, and an antisymmetric one, which is not.
    columns = means.T
    along = frame.T @ columns
    outside = columns - frame @ along
    turned = a.symmetric * (along + along.T) / 2 + (along - along.T) / 2
    moved = moved + (frame @ turned + outside).T[:, None, :]
    tau, c = jnp.sqrt(lam_H / lam_W), jnp.sqrt(lam_H * lam_W)
    classifier = tau * (c * turned.T - (1 - c) * turned) @ frame.T + tau * outside.T
    return moved, classifier


def predict_nc1_ratio(lam_W: Scalar, lam_H: Scalar, beta: Scalar) -> Float[Array, ""]:
    r"""Return by what factor one link multiplies `nc1_pinv` near collapse: $(\beta/(\beta+\tau))^2$.

    It grows (less collapse per link) with $\lambda_W$ and `beta`, and falls with $\lambda_H$.

    **Arguments:**

    - `lam_W`, `lam_H`, `beta`: as for [`neuralcollapse.perturb.attenuation`][].
    """
    return attenuation(lam_W, lam_H, beta).within_span ** 2


def estimate_beta(nc1: Float[Array, " layers"], lam_W: Scalar, lam_H: Scalar) -> Float[Array, " links"]:
    r"""Fit `beta` for every link of a network from the `nc1_pinv` of its layers: a profile over depth.

    A small value is an expressive link. It is the inverse of [`neuralcollapse.perturb.predict_nc1_ratio`][], so it
    describes features near collapse.

    **Arguments:**

    - `nc1`: `nc1_pinv` of successive layers, at least two, positive.
    - `lam_W`, `lam_H`: strengths in the normalisation of Tirer et al.

    **Returns:**

    One value per link, infinity where `nc1` does not fall.

    !!! Example

        ```python
        neuralcollapse.perturb.estimate_beta(jnp.array([0.9, 0.3, 0.1]), 1e-2, 1e-2)  # [1.366, 1.366]
        ```
    """
    values = finite(nc1, "nc1", 1)
    if values.shape[0] < 2:
        raise ValueError(f"`nc1` must have the values of at least two layers; got {values.shape[0]}.")
    values = require(values, jnp.all(values > 0), "`nc1` must be positive.", nc1=values)
    dtype = values.dtype
    tau = jnp.sqrt(positive(lam_H, "lam_H", dtype) / positive(lam_W, "lam_W", dtype))
    root = jnp.sqrt(values[1:] / values[:-1])
    falls = root < 1
    return jnp.where(falls, tau * root / jnp.where(falls, 1 - root, 1), jnp.inf)


def _strengths(lam_W, lam_H, beta) -> tuple[Array, Array, Array]:
    # Python numbers are weak: they take on the dtype of an array among them.
    dtype = jnp.result_type(lam_W, lam_H, beta, 1.0)
    lam_W, lam_H = positive(lam_W, "lam_W", dtype), positive(lam_H, "lam_H", dtype)
    lam_W = require(
        lam_W,
        lam_W * lam_H < 1,
        "`lam_W * lam_H` must be below one, else the minimum is zero.",
        lam_W=lam_W,
        lam_H=lam_H,
    )
    return lam_W, lam_H, positive(beta, "beta", dtype)


def _frame(R) -> Array:
    frame = finite(R, "R", 2)
    error = jnp.max(jnp.abs(frame.T @ frame - jnp.eye(frame.shape[1], dtype=frame.dtype)))
    return require(frame, error < 1e-4, "`R` must have orthonormal columns: R'R = I.", error=error)


def _perturbation(dH0: Shaped[Array, "..."], R: Shaped[Array, "..."]) -> Array:
    change = finite(dH0, "dH0", 3)
    if change.shape[0] != R.shape[1] or change.shape[2] != R.shape[0]:
        raise ValueError(
            f"`dH0` must have shape (K, n, d) for the frame's K = {R.shape[1]} and d = {R.shape[0]}; got {change.shape}."
        )
    return change
