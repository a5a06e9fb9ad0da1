import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._arguments import Scalar, finite, positive
from ._check import require
from ._lanczos import lanczos


class StepLimit(eqx.Module):
    r"""The largest step size at which stochastic gradient descent is stable in mean square.

    **Attributes:**

    - `eta`: the largest stable step.
    - `residual`: a bound on the error of $1/\eta$ as an eigenvalue, see [`neuralcollapse.sharpness.Eigenvalues`][].
    - `trace`, `lambda_max`: of the mean Hessian $G$.
    """

    eta: Float[Array, ""]
    residual: Float[Array, ""]
    trace: Float[Array, ""]
    lambda_max: Float[Array, ""]


def gd_margin(eta: Scalar, sharpness: Scalar) -> Float[Array, ""]:
    r"""Return $2/\eta - \lambda_{\max}$: negative where gradient descent with step `eta` is unstable.

    **Arguments:**

    - `eta`: the step size, positive.
    - `sharpness`: the largest eigenvalue of the Hessian.
    """
    dtype = jnp.result_type(eta, sharpness, 1.0)
    return 2 / positive(eta, "eta", dtype) - jnp.asarray(sharpness, dtype)


def sgd_margin_b1(eta: Scalar, trace: Scalar) -> Float[Array, ""]:
    r"""Return $2/\eta - \operatorname{tr} H$: negative where SGD with step `eta` and *batch size one* is unstable.

    A necessary condition at an interpolating minimum of a squared loss (arXiv:2305.17490); it does not hold for larger
    batches, for which [`neuralcollapse.sharpness.sgd_eta_max`][] is exact.

    **Arguments:**

    - `eta`: the step size, positive.
    - `trace`: the trace of the Hessian.
    """
    return gd_margin(eta, trace)


def sgd_eta_max(
    gradients: Float[Array, "n *c p"],
    batch_size: int,
    *,
    replace: bool = True,
    key: PRNGKeyArray | None = None,
    num_steps: int = 64,
) -> StepLimit:
    r"""Return the exact largest step of mean-square stability of SGD at an interpolating minimum of a squared loss.

    With $G_i = x_i x_i^\top$ for the gradients $x_i$ of single outputs, the covariance of the iterates moves by
    $P \mapsto \mathbb E (I - \eta \hat G)P(I - \eta \hat G) = P - \eta L_1 P + \eta^2 L_2 P$, where $L_1 P = GP + PG$ and
    $L_2 P = (1-\tfrac1B) GPG + \tfrac1B \tfrac1n \sum_i G_i P G_i$. Both are self-adjoint, so it is stable exactly if
    $\eta L_2 \preceq L_1$: one over the limit is the largest eigenvalue of $L_1^{-1/2} L_2 L_1^{-1/2}$, which Lanczos'
    method finds on matrices of the size of the rank of $G$. No bisection over `eta` and no power iteration.

    **Arguments:**

    - `gradients`: the gradient of the model's output for every sample, `[n, p]`; for outputs of dimension `c`,
        `[n, c, p]`.
    - `batch_size`: $B$.
    - `replace`: whether batches are drawn with replacement. Without, $1/B$ becomes $(n-B)/(B(n-1))$.
    - `key`: draws the starting vector; `None` is a fixed one.
    - `num_steps`: of Lanczos' method.

    **Returns:**

    A [`neuralcollapse.sharpness.StepLimit`][]. For the full batch (without replacement) it is $2/\lambda_{\max}$; for
    $n = d$ orthogonal gradients of equal norms, $\eta\operatorname{tr} G = 2n/(1 - 1/B + n/B)$.

    **Raises:**

    `ValueError` for gradients that are not finite or all zero, or a batch size out of range.

    !!! Example

        ```python
        neuralcollapse.sharpness.sgd_eta_max(jnp.eye(5), 1).eta  # 2.0: eta tr(G) = 2
        ```

    ??? cite "Reference"

        Wu and Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent",
        arXiv:2305.17490, has the trace condition for batch size one.
    """
    x = finite(gradients, "gradients")
    if x.ndim not in (2, 3):
        raise ValueError(f"`gradients` must have shape [n, p] or [n, c, p]; got {x.shape}.")
    x = x[:, None, :] if x.ndim == 2 else x
    n, outputs, _ = x.shape
    if not isinstance(batch_size, int) or batch_size < 1 or (not replace and batch_size > n):
        raise ValueError(f"`batch_size` must be at least one, and at most {n} without replacement; got {batch_size!r}.")
    rows = x.reshape(n * outputs, -1)
    # Only the span of the gradients moves: coordinates in it, in which G is diagonal.
    u, s, _ = jnp.linalg.svd(rows, full_matrices=False)
    eigenvalues = s**2 / n
    scale = require(eigenvalues[0], s[0] > 0, "`gradients` must not all be zero: every step is stable.")
    if replace or n == 1:
        single = 1 / batch_size
    else:
        single = (n - batch_size) / (batch_size * (n - 1))
    rank = s.shape[0]
    # What is zero but for rounding stays out.
    alive = eigenvalues > scale * rank * jnp.finfo(x.dtype).eps
    y = (u * jnp.where(alive, s, 0)[None]).reshape(n, outputs, rank)
    g = jnp.where(alive, eigenvalues, 0)
    pair = jnp.where(alive[:, None] & alive[None], g[:, None] + g[None], jnp.inf)

    def product(flat):
        p = flat.reshape(rank, rank) / jnp.sqrt(pair)
        inner = jnp.einsum("icr,rs,ids->icd", y, p, y, optimize=True)
        mixed = jnp.einsum("icr,icd,ids->rs", y, inner, y, optimize=True) / n
        out = (1 - single) * g[:, None] * p * g[None] + single * mixed
        return (out / jnp.sqrt(pair)).reshape(-1)

    key = jr.key(0) if key is None else key
    steps = min(num_steps, rank * rank)
    _, alpha, beta = lanczos(product, rank * rank, x.dtype, steps, key)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(matrix)
    return StepLimit(1 / values[-1], jnp.abs(beta[-1] * vectors[-1, -1]), jnp.sum(g), scale)


def mean_square_map(
    P: Float[Array, "p p"], gradients: Float[Array, "n p"], eta: Scalar, batch_size: Scalar
) -> Float[Array, "p p"]:
    r"""Return the covariance of SGD's iterates one step on, from `P`, with replacement: the map whose radius decides.

    **Arguments:**

    - `P`: a covariance, `[p, p]`.
    - `gradients`: of the model's output for every sample, `[n, p]`.
    - `eta`: the step size.
    - `batch_size`: $B$.
    """
    n = gradients.shape[0]
    step = jnp.asarray(eta, P.dtype)
    g = gradients.T @ gradients / n
    quadratic = jnp.einsum("ir,rs,is->i", gradients, P, gradients)
    mixed = (gradients * quadratic[:, None]).T @ gradients / n
    single = 1 / jnp.asarray(batch_size, P.dtype)
    noise = (1 - single) * g @ P @ g + single * mixed
    return P - step * (g @ P + P @ g) + step**2 * noise
