import math
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._dictionaries.dictionary import AbstractDictionary
from .._factor.factor import Factor, promoted
from .._factor.snapshots import Snapshots
from .._spectra.edmd import Eigenpairs, edmd
from . import statistics as stats
from .certificate import REFUSALS, Certificate
from .evidence import ExactIntegrals, KnownModulus
from .pointwise import Pointwise, pointwise


Method: TypeAlias = Literal["auto", "bernstein", "asymptotic"]

_FEWEST, _FEWEST_BLOCKS = 30, 20
_ROW = {text.partition(":")[0]: row for row, text in enumerate(REFUSALS)}


def certify(
    pairs: Eigenpairs,
    holdout: Snapshots | ExactIntegrals | KnownModulus | None = None,
    level: float = 0.99,
    *,
    method: Method = "auto",
    bound: Any = None,
    block: int | None = None,
    tol: float | None = None,
    measure_preserving: bool = False,
) -> Certificate:
    r"""Bound the residual of each eigenpair, or refuse.

    What may be claimed depends on the evidence, the second argument:

    - `Snapshots` that the fit has not seen: `"holdout"`. The residual is the root of a ratio of two means, and all
        bounds hold together with probability `level`. Of kind `"iid"` they must be independent draws from $\omega$; of
        kind `"trajectory"` they are averaged over blocks longer than the decorrelation time first.
    - [`koopman_verify.ExactIntegrals`][]: `"exact"`. The residual of the fit is a bound, up to rounding.
    - [`koopman_verify.KnownModulus`][]: `"quadrature"`. A proof from finitely many nodes.
    - `None`: `"training"`. The residual of the fit on the data of the fit, which is always refused: with 1.2 snapshots
        per function it is 1 to 4 % of the truth (benchmark KV-5).

    **Arguments:**

    - `pairs`: [`koopman_verify.Eigenpairs`][], from here or from another library (`koopman_verify.interop`).
    - `holdout`: the evidence.
    - `level`: the probability with which all bounds, upper and lower, of all pairs hold at once.
    - `method`: for hold-out data. `"bernstein"`: the empirical Bernstein bound, rigorous at every sample size, for
        bounded dictionaries; `"asymptotic"`: Student's interval corrected for skewness; `"auto"`: the first where it
        is at most 1.5 times the second, each with half of the error probability.
    - `bound`: $\sup|g|$ of each eigenfunction, `[k]`, where it is better known than
        $\sum_j|v_j|\sup|\psi_j|$ from the dictionary.
    - `block`: length of the blocks of a trajectory; by default five times the integrated autocorrelation time.
    - `tol`: the residual that is wanted: then a pair is certified where its upper bound is at most `tol`, refuted where
        its lower bound is above, and uncertifiable between.
    - `measure_preserving`: declares that the map preserves $\omega$. The declaration is checked on the hold-out set by
        [`koopman_verify.audit_measure_preserving`][], and pairs that contradict it are refused.

    **Returns:** a [`koopman_verify.Certificate`][].

    **Raises:** `ValueError` if `level` is not between zero and one, the evidence does not fit the pairs, or the hold-out
    set was used in the fit.

    !!! Example

        ```python
        pairs = koopman_verify.edmd(koopman_verify.factor(dictionary, snapshots))
        print(koopman_verify.certify(pairs, fresh_snapshots, tol=0.3))
        ```
    """
    if not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level}")
    if method not in get_args(Method):
        raise ValueError(f"`method` must be one of {get_args(Method)}; got {method!r}")
    if tol is not None and not (isinstance(tol, (int, float, np.number)) and 0 < tol < math.inf):
        raise ValueError(f"`tol` must be positive and finite; got {tol!r}")
    if not isinstance(pairs, Eigenpairs):
        raise TypeError(f"`pairs` must be `Eigenpairs`; got {type(pairs).__name__}")
    if measure_preserving and not isinstance(holdout, Snapshots):
        raise ValueError("`measure_preserving` is checked on hold-out snapshots: pass some as `holdout`")
    single = pairs.eigenvalues.ndim == 0
    many = _with_axis(pairs) if single else pairs
    if holdout is None or isinstance(holdout, ExactIntegrals):
        out = _from_fit(many, holdout, tol)
    elif isinstance(holdout, KnownModulus):
        out = _from_modulus(many, holdout, tol)
    elif isinstance(holdout, Snapshots):
        out = _from_holdout(many, holdout, level, method, bound, block, tol, measure_preserving)
    else:
        raise TypeError(
            "`holdout` must be `Snapshots`, `ExactIntegrals`, `KnownModulus` or None; got " + type(holdout).__name__
        )
    return _without_axis(out) if single else out


@eqx.filter_jit
def _with_axis(pair: Eigenpairs) -> Eigenpairs:
    return pair[None]


@eqx.filter_jit
def _without_axis(certificate: Certificate) -> Certificate:
    return jax.tree.map(lambda a: a[..., 0] if a.ndim else a, certificate)


def _certificate(pairs: Eigenpairs, reasons: dict[str, Array], **fields: Any) -> Certificate:
    """Fill in what every kind has in common."""
    estimate, tau, upper = fields["estimate"], fields["rounding"], fields["upper"]
    k, eps = len(estimate), float(jnp.finfo(estimate.dtype).eps)
    # A residual at the level of rounding is as good as any that is as small: only where rounding matters it is refused.
    matters = tau > math.sqrt(eps) * (1 + jnp.abs(pairs.eigenvalues))
    reasons = {
        "nonfinite": ~(jnp.isfinite(estimate) & jnp.isfinite(tau)),
        "rounding": matters & (tau > estimate),
        "unbounded": ~jnp.isfinite(upper),
        **reasons,
    }
    flags = [jnp.broadcast_to(reasons.get(name, jnp.zeros((), bool)), (k,)) for name in _ROW]
    common = dict(rigorous=jnp.ones(k, bool), outside=None, effective=None, trivial=_constant(pairs))
    return Certificate(eigenvalues=pairs.eigenvalues, refusals=jnp.stack(flags), **{**common, **fields})


def _constant(pairs: Eigenpairs) -> Bool[Array, " k"]:
    """Say which functions are constant on the states that the fit left behind."""
    if pairs.witnesses is None or len(pairs.witnesses) < 2:
        return jnp.zeros(len(pairs.eigenvalues), bool)
    g = jax.vmap(pairs.functions)(pairs.witnesses)
    spread = jnp.mean(jnp.abs(g - g[:1]) ** 2, axis=0)
    return spread <= 1e-6 * jnp.mean(jnp.abs(g) ** 2, axis=0)


# Each kind of evidence is one compiled function: op by op, a first call costs seconds of compilation.
@eqx.filter_jit
def _from_fit(pairs: Eigenpairs, exact: ExactIntegrals | None, tol: float | None) -> Certificate:
    estimate, tau = pairs.residuals, pairs.rounding
    fields = dict(estimate=estimate, rounding=tau, upper=estimate + tau, lower=jnp.maximum(estimate - tau, 0), tol=tol)
    if exact is not None:
        if pairs.space == "L2" and pairs.kind != "quadrature":
            raise ValueError(
                "`ExactIntegrals` needs the nodes of a quadrature rule: the pairs come from snapshots of kind "
                f"{pairs.kind!r}, whose means are not integrals"
            )
        evidence = (f"stated: the integrals are exact: {exact.reason}",)
        return _certificate(pairs, {}, kind="exact", level=1.0, evidence=evidence, **fields)
    num, size = pairs.num_snapshots, pairs.size
    amount = f"M = {num} snapshots for N = {size} functions" if num else f"N = {size} functions, M unknown"
    little = "; below M = 10 N the residual of the fit is far too small" if num < 10 * size else ""
    evidence = (f"nothing: {amount}{little}",)
    no = jnp.ones((), bool)
    return _certificate(pairs, {"training": no}, kind="training", level=0.0, evidence=evidence, **fields)


@eqx.filter_jit
def _from_modulus(pairs: Eigenpairs, known: KnownModulus, tol: float | None) -> Certificate:
    lipschitz = known.lipschitz
    if lipschitz is None and isinstance(pairs.dictionary, AbstractDictionary):
        lipschitz = pairs.dictionary.lipschitz()
    if lipschitz is None:
        raise ValueError(
            "`KnownModulus` needs Lipschitz constants, which this dictionary does not know: pass `lipschitz`"
        )
    if lipschitz.shape != (pairs.size,):
        raise ValueError(f"`lipschitz` must have shape [N] = [{pairs.size}]; got {list(lipschitz.shape)}")
    _check_space(pairs)
    snapshots, values = known.snapshots, pointwise(pairs, known.snapshots)
    w = jnp.ones_like(snapshots.x[:, 0]) if snapshots.weights is None else snapshots.weights
    w = w / jnp.sum(w)
    radii = jnp.broadcast_to(known.radii, w.shape)
    moved = known.alpha(radii)[:, None] + known.error + jnp.abs(pairs.eigenvalues)[None] * radii[:, None]
    ell = lipschitz.astype(w.dtype) @ jnp.abs(pairs.coefficients)
    top, bottom = jnp.sqrt(jnp.mean(values.n, axis=0)), jnp.sqrt(jnp.mean(values.d, axis=0))
    # `values` holds weights of mean one, so that means are integrals.
    shift_top, shift_bottom = ell * jnp.sqrt(w @ moved**2), ell * jnp.sqrt(w @ radii**2)
    positive = bottom - shift_bottom > 0
    upper = jnp.where(positive, (top + shift_top) / jnp.where(positive, bottom - shift_bottom, 1), jnp.inf)
    lower = jnp.maximum(top - shift_top, 0) / (bottom + shift_bottom)
    tau = values.rounding * jnp.where(positive, bottom / jnp.where(positive, bottom - shift_bottom, 1), 1)
    evidence = (
        "stated: the weights are the measures of the cells, the radii and the modulus are right",
        f"stated: successors are known up to {known.error:g}",
    )
    return _certificate(
        pairs,
        {},
        estimate=top / bottom,
        rounding=tau,
        upper=upper + tau,
        lower=jnp.maximum(lower - tau, 0),
        outside=values.outside,
        kind="quadrature",
        level=1.0,
        tol=tol,
        evidence=evidence,
    )


def _check_space(pairs: Eigenpairs) -> None:
    if pairs.space != "L2" or pairs.operator != "koopman":
        raise ValueError(
            "means over snapshots are norms in L2 for the Koopman operator; these pairs speak of "
            f"{pairs.operator!r} in {pairs.space!r}, whose matrices are exact: pass `ExactIntegrals`"
        )


def _from_holdout(
    pairs: Eigenpairs,
    holdout: Snapshots,
    level: float,
    method: Method,
    bound: Any,
    block: int | None,
    tol: float | None,
    measure_preserving: bool,
) -> Certificate:
    holdout = _checked_holdout(pairs, holdout)
    independent = holdout.kind == "iid"
    if holdout.num_snapshots < 2:
        raise ValueError(
            f"`holdout` must hold at least two independent snapshots or blocks; got {holdout.num_snapshots}"
        )
    suprema = None if holdout.weights is not None else _suprema(pairs, bound)
    if method == "bernstein" and (suprema is None or not independent):
        raise ValueError(
            "`method='bernstein'` needs a bounded dictionary (`supremum()`) or `bound`, and independent snapshots without "
            "weights"
        )
    if block is not None and not independent:
        _check_block(holdout.num_snapshots, block)
    values = pointwise(pairs, holdout)
    block = 1 if independent else _block(values) if block is None else block
    num = len(values.n) // block
    if independent:
        evidence = [f"stated: {num} hold-out snapshots are independent draws from the measure"]
    else:
        evidence = [f"measured: {num} blocks of {block} consecutive snapshots are treated as independent"]
    evidence.append(f"level {level:g} is shared by {2 * len(pairs)} bounds (union bound)")
    unseen = math.log(2 * len(pairs) / (1 - level)) / num
    evidence.append(
        f"stated, for bounds that are not rigorous: nothing that matters happens only on a set of measure below {unseen:.1e}, "
        "which these snapshots may have missed"
    )
    if pairs.witnesses is None:
        evidence.append("stated: the hold-out set was not used in the fit (the pairs hold no states to check it by)")
    else:
        evidence.append(f"measured: none of {len(pairs.witnesses)} states of the fit is in the hold-out set")
    defect = None
    if measure_preserving:
        defect = values.defect(pairs, holdout)
        evidence.append("stated: the map preserves the measure; checked on the hold-out set")
    fields = dict(kind="holdout", level=float(level), tol=tol, evidence=tuple(evidence))
    return _judge(pairs, values, suprema, defect, float(level), method, independent, block, fields)


@eqx.filter_jit
def _judge(
    pairs: Eigenpairs,
    values: Pointwise,
    suprema: tuple[Array, Array] | None,
    defect: Array | None,
    level: float,
    method: Method,
    independent: bool,
    block: int,
    fields: dict[str, Any],
) -> Certificate:
    """Turn the values at the snapshots into bounds and reasons: all that is numbers, in one compiled function."""
    n, d, inflation = values.n, values.d, 1.0
    if not independent:
        n, d = stats.block_means(n, block), stats.block_means(d, block)
        inflation = 1 + 2 * stats.neighbours(n, d)
    moments, tau = stats.moments(n, d), values.rounding
    lower, upper, rigorous, trusted = _interval(moments, level, method, suprema, inflation, independent)
    reasons = {
        "few": jnp.asarray(len(n) < (_FEWEST if independent else _FEWEST_BLOCKS)),
        "duplicates": values.duplicates,
        "concentrated": ~trusted & ~rigorous,
    }
    estimate = jnp.sqrt(moments.ratio)
    if defect is not None:
        reasons["isometry"] = _excess(pairs, estimate, defect, tau) > 0
    return _certificate(
        pairs,
        reasons,
        estimate=estimate,
        rounding=tau,
        upper=jnp.sqrt(upper) + tau,
        lower=jnp.maximum(jnp.sqrt(lower) - tau, 0),
        rigorous=rigorous,
        trivial=values.constant,
        outside=values.outside,
        effective=moments.effective(),
        **fields,
    )


def _checked_holdout(pairs: Eigenpairs, holdout: Snapshots) -> Snapshots:
    _check_space(pairs)
    if holdout.kind == "quadrature":
        raise ValueError(
            "`holdout` of kind 'quadrature' is not random, so that no confidence level applies: pass `ExactIntegrals` or "
            "`KnownModulus`"
        )
    if pairs.witnesses is None:
        return holdout
    if pairs.witnesses.shape[1] != holdout.x.shape[1]:
        raise ValueError(
            f"`holdout` must have states of dimension {pairs.witnesses.shape[1]}, as the fit; got {holdout.x.shape[1]}"
        )
    message = "`holdout` holds states that the fit has used: a bound needs snapshots that it has not seen"
    if isinstance(holdout.x, Tracer) or isinstance(pairs.witnesses, Tracer):
        seen = holdout.x[:, None] == pairs.witnesses.astype(holdout.x.dtype)[None]
        return eqx.tree_at(lambda s: s.x, holdout, eqx.error_if(holdout.x, jnp.any(jnp.all(seen, axis=2)), message))
    states = np.asarray(holdout.x)
    if any(bool((states == state).all(axis=1).any()) for state in np.asarray(pairs.witnesses, states.dtype)):
        raise ValueError(message)
    return holdout


def _block(values: Pointwise) -> int:
    """Return the length of the blocks of a trajectory: five decorrelation times."""
    if isinstance(values.n, Tracer):
        raise TypeError("the length of the blocks is decided by values: outside of `jit`, or pass `block`")
    block = max(1, math.ceil(5 * float(_longest(values))))
    _check_block(len(values.n), block)
    return block


def _check_block(num: int, block: int) -> None:
    if not 1 <= block <= num // 2:
        raise ValueError(
            f"`holdout` is a trajectory of {num} snapshots, too short for two blocks of {block} (five decorrelation times): "
            "take a longer one, or `block`"
        )


@eqx.filter_jit
def _longest(values: Pointwise) -> Array:
    """Return the longest decorrelation time of all pairs."""
    n, d = values.n, values.d
    ratio = jnp.mean(n, axis=0, keepdims=True) / jnp.mean(d, axis=0, keepdims=True)
    times = jnp.maximum(stats.decorrelation(n - ratio * d), stats.decorrelation(d))
    # A residual that is nothing but rounding has no time scale of its own.
    return jnp.nanmax(jnp.where(ratio[0] > values.rounding**2, times, 1))


@eqx.filter_jit
def _suprema(pairs: Eigenpairs, bound: Any) -> tuple[Array, Array] | None:
    """Return the largest values that $|(K-\\lambda)g|^2$ and $|g|^2$ can have."""
    if bound is None:
        known = pairs.dictionary.supremum() if isinstance(pairs.dictionary, AbstractDictionary) else None
        if known is None:
            return None
        known, v = promoted(known, jnp.abs(pairs.coefficients))
        bound = (known @ v).astype(pairs.residuals.dtype)
    else:
        bound = jnp.asarray(bound, pairs.residuals.dtype)
        if bound.shape not in ((), pairs.eigenvalues.shape):
            raise ValueError(f"`bound` must be one number or [k] = [{len(pairs)}]; got {list(bound.shape)}")
        bound = jnp.broadcast_to(bound, pairs.eigenvalues.shape)
    return ((1 + jnp.abs(pairs.eigenvalues)) * bound) ** 2, bound**2


def _interval(
    moments: stats.Moments,
    level: float,
    method: Method,
    suprema: tuple[Array, Array] | None,
    inflation: Array | float,
    independent: bool,
) -> tuple[Array, Array, Array, Array]:
    """Return lower and upper bounds of the ratio, where they are rigorous, and where large-sample ones may be trusted."""
    k = len(moments.n)
    no = jnp.zeros(k, bool)
    if suprema is None or (method == "auto" and not independent) or method == "asymptotic":
        miss = (1 - level) / (2 * k)
        return *stats.asymptotic(moments, miss, inflation), no, stats.trusted(moments)
    if method == "bernstein":
        return *stats.bernstein(moments, (1 - level) / (2 * k), *suprema), no | independent, no
    miss = (1 - level) / (4 * k)  # two bounds are made, of which either may be taken
    lower, upper = stats.asymptotic(moments, miss, inflation)
    trusted = stats.trusted(moments)
    sure_lower, sure_upper = stats.bernstein(moments, miss, *suprema)
    rigorous = (sure_upper <= 1.5**2 * upper) | (~trusted & jnp.isfinite(sure_upper))
    return jnp.where(rigorous, sure_lower, lower), jnp.where(rigorous, sure_upper, upper), rigorous, trusted


class MeasureAudit(eqx.Module):
    r"""Whether data agree with the declaration that a map preserves the measure.

    Made by [`koopman_verify.audit_measure_preserving`][].

    **Attributes:**

    - `defect`: $\lVert L-I\rVert_2$ on the given snapshots: of the map and of the finite data together.
    - `excess`: $|1-|\lambda|| - (\mathrm{res} + 1-\sqrt{1-\delta} + \tau)$ for each pair, `[k]`.
    - `violated`: where the excess is positive, `[k]`: no isometry has such a pair.

    !!! Example

        ```python
        audit = koopman_verify.audit_measure_preserving(pairs, fresh_snapshots)
        print(audit.defect, audit.violated)
        ```
    """

    defect: Float[Array, ""]
    excess: Float[Array, " k"]

    @property
    def violated(self) -> Bool[Array, " k"]:
        """Where the excess is positive."""
        return self.excess > 0


def audit_measure_preserving(pairs: Eigenpairs | Factor, holdout: Snapshots) -> MeasureAudit:
    r"""Check on snapshots whether the Koopman operator can be an isometry.

    For an isometry $\bigl|1-|\lambda|\bigr|\le\lVert(K-\lambda)g\rVert/\lVert g\rVert$. On finite data the norm of $Kg$
    differs from that of $g$ by a factor of $\sqrt{1\pm\delta}$ at most, $\delta$ being the isometry defect.

    **Arguments:**

    - `pairs`: [`koopman_verify.Eigenpairs`][], or a factor, whose pairs are then taken.
    - `holdout`: snapshots that the fit has not seen, more than the dictionary has functions.

    **Returns:** a [`koopman_verify.MeasureAudit`][].

    !!! Example

        ```python
        audit = koopman_verify.audit_measure_preserving(pairs, fresh_snapshots)
        print(audit.defect, audit.violated)
        ```
    """
    pairs = edmd(pairs) if isinstance(pairs, Factor) else pairs
    _check_space(pairs)
    values = pointwise(pairs, holdout)
    defect = values.defect(pairs, holdout)
    return _audited(pairs, values, defect)


@eqx.filter_jit
def _audited(pairs: Eigenpairs, values: Pointwise, defect: Array) -> MeasureAudit:
    residual = jnp.sqrt(jnp.mean(values.n, axis=0) / jnp.mean(values.d, axis=0))
    return MeasureAudit(defect=defect, excess=_excess(pairs, residual, defect, values.rounding))


def _excess(pairs: Eigenpairs, residual: Array, defect: Array, tau: Array) -> Array:
    allowed = residual + (1 - jnp.sqrt(jnp.clip(1 - defect, 0))) + tau
    return jnp.abs(1 - jnp.abs(pairs.eigenvalues)) - allowed
