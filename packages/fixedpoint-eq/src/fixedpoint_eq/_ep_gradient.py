from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from implicit_core.krylov import tree_norm as norm
from jaxtyping import Array, Float, PyTree

from ._diagnostics import cosine
from ._ep_estimators import RBP, AbstractEstimator, Oscillating, Response
from ._ep_field import AbstractVectorField
from ._ep_phases import Coordinates, Sample, Settle, Settler, free_phase, limit, residual, run
from ._results import RESULTS


Params = TypeVar("Params")


class EPInfo(eqx.Module):
    r"""What became of each sample of an equilibrium propagation: arrays with a leading batch axis.

    **Attributes:**

    - `result`: [`fixedpoint_eq.RESULTS`][]; only `successful` ones can be trusted.
    - `loss`: of the free prediction.
    - `prediction`: the free prediction.
    - `state`: the free equilibrium, as potentials; pass it as `initial` for a warm start.
    - `response`: the error signal of each unit.
    - `residual_free`: $|F|$ at the free equilibrium, a 2-norm over the units.
    - `residual_nudged`: the largest of those at the nudged equilibria, or of the linear system that stands for them.
    - `nudge_ratio`: an estimate of `beta` over the radius of holomorphy, from how far the mean of the states around the
        circle is from the free equilibrium; exact where the Taylor coefficients of the state are geometric, and infinite
        where the dynamics are not holomorphic, which is probed at a complex state. `None` for estimators without a
        circle.
    - `alignment`: if asked for, the cosines between the error signal and the true one: a pair of a pytree like the
        state, and that of all units together.
    """

    result: RESULTS
    loss: Float[Array, "..."]
    prediction: PyTree[Array]
    state: PyTree[Array]
    response: PyTree[Array]
    residual_free: Float[Array, "..."]
    residual_nudged: Float[Array, "..."]
    nudge_ratio: Float[Array, "..."] | None
    alignment: tuple[PyTree[Float[Array, "..."]], Float[Array, "..."]] | None


def gradient(
    field: AbstractVectorField,
    params: Params,
    x: PyTree[Array],
    y: PyTree[Array],
    estimator: AbstractEstimator,
    *,
    free: Settler = Settle(),
    nudged: Settler | None = None,
    coordinates: Coordinates = "activity",
    initial: PyTree[Array] | None = None,
    tol: float | None = None,
    alignment: bool = False,
    on_failure: Literal["keep", "zero"] = "keep",
    throw: bool = True,
) -> tuple[Params, EPInfo]:
    r"""Return the gradient of the mean loss of a batch, from equilibria instead of a backward pass.

    Each sample settles freely; the estimator perturbs it and reads the response $q$; and the gradient is one local VJP,
    $(\partial F/\partial\theta)^\top q$, beside the direct one of the readout. It is the true gradient where $q$ is the
    true error, which [`fixedpoint_eq.ep.AsymEP`][], [`fixedpoint_eq.ep.Dyadic`][] and [`fixedpoint_eq.ep.RBP`][] aim
    at, and plain equilibrium propagation only where the Jacobian is symmetric.

    **Arguments:**

    - `field`: the dynamics.
    - `params`: their parameters, any pytree. Leaves that are not arrays of floating point have no gradient.
    - `x`, `y`: inputs and targets, pytrees of arrays with a leading batch axis.
    - `estimator`: `OneSided`, `Symmetric`, `Cauchy`, `Oscillating`, `ExactResponse`, `AsymEP`, `Dyadic` or `RBP`.
    - `free`, `nudged`: how the phases settle: [`fixedpoint_eq.ep.Settle`][], a solver of [`fixedpoint_eq.solve`][]
        or another fixed-point solver of Optimistix, or any callable `(fn, u) -> u`. `nudged` defaults to `free`.
    - `coordinates`: `"activity"`, in which the Jacobian is symmetric where the weights are; or `"membrane"`.
    - `initial`: potentials from which the free phases start, with a leading batch axis.
    - `tol`: the residual, relative to one plus the norm of the state, above which a phase counts as unsettled; by
        default the square root of the precision.
    - `alignment`: whether to solve for the true error too, and report the cosines.
    - `on_failure`: whether samples that failed contribute to the gradient what they have, or zero. Responses that are
        not finite contribute zero in any case.
    - `throw`: whether to raise if a sample fails; otherwise see `result` of the [`fixedpoint_eq.ep.EPInfo`][].

    **Returns:**

    The gradient, of the structure of `params` with `None` for leaves without one, and an
    [`fixedpoint_eq.ep.EPInfo`][].

    **Raises:**

    `ValueError` for an unknown option, or `x`, `y` and `initial` without a common batch axis.

    !!! Example

        ```python
        field = ep.mlp((64, 32, 10))
        params = field.init(key=jr.key(0))
        grads, info = ep.gradient(field, params, x, y, ep.AsymEP(ep.Cauchy(0.1, 6)))
        ```

    ??? cite "Reference"

        Laborieux and Zenke, "Improving equilibrium propagation without weight symmetry through Jacobian homeostasis",
        arXiv:2309.02214, (4) to (10).
    """
    if coordinates not in ("activity", "membrane"):
        raise ValueError(f'`coordinates` must be "activity" or "membrane"; got {coordinates!r}')
    if on_failure not in ("keep", "zero"):
        raise ValueError(f'`on_failure` must be "keep" or "zero"; got {on_failure!r}')
    size = batch_size(x, y, initial)
    nudged = free if nudged is None else nudged

    def one(x, y, start):
        start = field.initial(x) if start is None else start
        sample = Sample(field, params, x, y, start, nudged, coordinates)
        # The oscillating nudge replaces the free phase, unless AsymEP needs the Jacobian there.
        if isinstance(estimator, Oscillating):
            response = estimator.response(sample)
            u0 = response.u0
        else:
            sample = free_phase(field, params, x, y, start, free, nudged, coordinates)
            u0 = sample.u0
            response = estimator.response(sample)
        sample = Sample(field, params, x, y, u0, nudged, coordinates)
        res = residual(sample.free_map, u0)
        result = _judge(u0, res, response, tol)
        # A finite value that was computed from states which are not is of no use either.
        keep = jnp.isfinite(norm(response.value)) & jnp.isfinite(norm(u0)) & jnp.isfinite(response.residual)
        if on_failure == "zero":
            keep = keep & (result == RESULTS.successful)
        value = jtu.tree_map(lambda q: jnp.where(keep, q, 0), response.value)
        if throw:
            value = result.error_if(value, result != RESULTS.successful)
        r0 = field.activation(u0)
        prediction = field.readout(params, r0)
        direct = jtu.tree_map(lambda g: jnp.where(keep, g, 0), field.loss.gradient(prediction, y))
        if alignment:
            delta = RBP().response(sample).value
            cosines = jtu.tree_map(cosine, value, delta), cosine(value, delta)
        else:
            cosines = None
        loss = field.loss.value(prediction, y)
        info = EPInfo(result, loss, prediction, u0, value, res, response.residual, response.nudge_ratio, cosines)
        # What is not finite may not meet a zero either.
        inputs = jtu.tree_map(lambda leaf: jnp.where(keep, leaf, jnp.zeros_like(leaf)), (r0, x))
        return (inputs, value, direct), info

    (inputs, value, direct), info = eqx.filter_vmap(one, in_axes=(0, 0, None if initial is None else 0))(x, y, initial)

    def local(params):
        return jax.vmap(lambda r, x: (field.drive(params, r, x), field.readout(params, r)))(*inputs)

    _, pullback = eqx.filter_vjp(local, params)
    (grads,) = pullback(jtu.tree_map(lambda c: c / size, (value, direct)))
    return grads, info


def _judge(u0: Any, res: Array, response: Response, tol: float | None) -> RESULTS:
    """Say how a sample ended."""
    bound = limit(u0, tol)
    finite = jnp.isfinite(response.residual) & jnp.isfinite(norm(response.value))
    failures = [
        (jnp.isfinite(res), RESULTS.nonfinite),
        # Without a free phase, there is the nudge's own measure of how good `u0` is.
        (jnp.asarray(True) if response.u0 is not None else res <= bound, RESULTS.free_phase_unsettled),
        (finite, RESULTS.nonfinite),
        (response.residual <= bound, RESULTS.nudged_phase_unsettled),
    ]
    if response.nudge_ratio is not None:
        failures.append((response.nudge_ratio < 1, RESULTS.nudge_too_large))
    result: Any = RESULTS.successful
    for good, code in reversed(failures):
        result = RESULTS.where(good, result, code)
    return result


def batch_size(x: Any, y: Any, initial: Any) -> int:
    """Return the size of the common leading axis."""
    sizes = {leaf.shape[:1] for leaf in jtu.tree_leaves((x, y, initial))}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"`x`, `y` and `initial` must have one leading batch axis; got leading sizes {sorted(sizes)}")
    return next(iter(sizes))[0]


def predict(
    field: AbstractVectorField,
    params: Any,
    x: PyTree[Array],
    *,
    free: Settler = Settle(),
    initial: PyTree[Array] | None = None,
    tol: float | None = None,
    throw: bool = True,
) -> tuple[PyTree[Array], RESULTS]:
    r"""Let a network settle on a batch of inputs, and read its predictions.

    **Arguments:**

    - `field`, `params`, `x`, `free`, `initial`, `tol`: as for [`fixedpoint_eq.ep.gradient`][].
    - `throw`: whether to raise if a sample does not settle; otherwise see the second result.

    **Returns:**

    The predictions, and a [`fixedpoint_eq.RESULTS`][] for each sample.

    !!! Example

        ```python
        logits, result = ep.predict(field, params, x)
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == y)
        ```
    """
    batch_size(x, (), initial)

    def one(x, start):
        start = field.initial(x) if start is None else start
        free_map = lambda u: field.drive(params, field.activation(u), x)
        u = run(free, free_map, start)
        res = residual(free_map, u)
        successful: Any = RESULTS.successful
        result = RESULTS.where(res <= limit(u, tol), successful, _unsettled(res))
        if throw:
            u = result.error_if(u, result != RESULTS.successful)
        return field.readout(params, field.activation(u)), result

    return eqx.filter_vmap(one, in_axes=(0, None if initial is None else 0))(x, initial)


def _unsettled(res: Array) -> Any:
    unsettled: Any = RESULTS.free_phase_unsettled
    nonfinite: Any = RESULTS.nonfinite
    return RESULTS.where(jnp.isfinite(res), unsettled, nonfinite)
