"""Every refusal names the argument, what was expected and what came; every degenerate case has a documented value."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neuralcollapse import ClassStats, Convention, Monitor, NCCStats, metrics


X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.array([0, 1, 2, 0, 1, 2])
W = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
EMPTY: Any = ClassStats.init(3, 3)
STATS: Any = EMPTY.update(X, Y)
NAN = float("nan")
ANY: Any = str  # what the type checker would refuse first

REFUSED = {
    "one class": (lambda: ClassStats.init(1, 3), "`num_classes` must be at least 2: collapse compares classes. Got 1"),
    "no features": (lambda: ClassStats.init(3, 0), "`dim` must be at least 1, got 0"),
    "kind": (
        lambda: ClassStats.init(3, 3, ANY("half")),
        "`within` must be 'full', 'diag', 'trace' or 'low-rank', got 'half'",
    ),
    "rank alone": (
        lambda: ClassStats.init(3, 3, rank=2),
        '`rank` goes with `within="low-rank"` and only with it; got 2',
    ),
    "no rank": (lambda: ClassStats.init(3, 3, "low-rank"), "`rank` goes with"),
    "rank": (lambda: ClassStats.init(3, 3, "low-rank", rank=4), "`rank` must be between 1 and `dim` = 3, got 4"),
    "dtype": (lambda: ClassStats.init(3, 3, dtype="float16"), "`dtype` must be float32 or float64, got float16"),
    "width": (lambda: EMPTY.update(X[:, :2], Y), r"`features` must have shape \(batch, 3\), got \(6, 2\)"),
    "labels": (
        lambda: EMPTY.update(X, Y[:4]),
        r"`labels` must have shape \(6,\), one for each row of `features`; got \(4,\)",
    ),
    "mask": (lambda: EMPTY.update(X, Y, Y[:4] > 0), r"`mask` must have shape \(6,\)"),
    "float labels": (lambda: EMPTY.update(X, X[:, 0]), "`labels` must be integers, got dtype float64"),
    "complex": (lambda: EMPTY.update(X.astype(complex), Y), "`features` must be real, got dtype complex128"),
    "precision": (
        lambda: ClassStats.init(3, 3, dtype="float32").update(X, Y),
        "`features` are float64 and the statistics",
    ),
    "label too large": (
        lambda: EMPTY.update(X, Y + 1),
        r"`labels` must lie in \[0, 3\) or be -1 for padding; 2 of them",
    ),
    "negative label": (lambda: EMPTY.update(X, Y - 2), "2 of them do not"),
    "NaN feature": (
        lambda: EMPTY.update(X.at[1, 2].set(NAN), Y),
        "`features` must be finite; 1 samples have NaN or inf",
    ),
    "other kind": (lambda: STATS.merge(ClassStats.init(3, 3, "diag")), "`other` must be statistics of the same kind"),
    "other classes": (lambda: STATS.merge(ClassStats.init(4, 3)), "`other` must be statistics of the same kind"),
    "no samples": (lambda: EMPTY.proportions(), "There are no samples yet"),
    "empty class": (
        lambda: metrics.report(EMPTY.update(X[:2], Y[:2])),
        r"Some classes have no samples.*number_of_empty_classes = 1",
    ),
    "empty class mean": (lambda: EMPTY.update(X[:2], Y[:2]).means(), "Some classes have no samples"),
    "dropping": (lambda: EMPTY.update(X[:1], Y[:1]).drop_empty(), "At least two classes must have samples; 1 have"),
    "coinciding means": (lambda: metrics.report(EMPTY.update(0 * X, Y)), "All class means coincide"),
    "coinciding means, pinv": (lambda: metrics.nc1_pinv(EMPTY.update(0 * X, Y)), "All class means coincide"),
    "coinciding means, quotient": (lambda: metrics.nc1_quotient(EMPTY.update(0 * X, Y)), "All class means coincide"),
    "weight": (
        lambda: metrics.report(STATS, W[:2]),
        r"`weight` must have shape \(3, 3\), one row a class; got \(2, 3\)",
    ),
    "zero weight": (lambda: metrics.report(STATS, 0 * W), "`weight` is all zero"),
    "NaN weight": (lambda: metrics.report(STATS, W.at[0, 0].set(NAN)), "`weight` must be finite"),
    "integer weight": (
        lambda: metrics.report(STATS, Y[:3, None] + Y[None, :3]),
        "`weight` must hold real floating-point",
    ),
    "bias": (
        lambda: metrics.report(STATS, W, jnp.ones(2)),
        r"`bias` must have shape \(3,\), one entry a class; got \(2,\)",
    ),
    "NaN bias": (lambda: metrics.report(STATS, W, jnp.full(3, NAN)), "`bias` must be finite"),
    "bias alone": (lambda: metrics.report(STATS, bias=jnp.ones(3)), "`bias` without `weight`"),
    "convention": (
        lambda: metrics.report(STATS, convention=ANY("tirer")),
        "`convention` must be one of 'papyan', 'fsoft', 'weighted'",
    ),
    "own convention": (
        lambda: Convention(between=ANY("sizes")),
        "`between` must be 'balanced' or 'weighted', got 'sizes'",
    ),
    "empty": (lambda: metrics.report(STATS, empty=ANY("keep")), "`empty` must be 'raise' or 'drop', got 'keep'"),
    "scale": (lambda: metrics.nc1_pinv(STATS, scale=ANY("K")), "`scale` must be '1/K' or 'none', got 'K'"),
    "trace only": (lambda: metrics.nc1_pinv(ClassStats.init(3, 3, "trace").update(X, Y)), "keep only the trace"),
    "one vector": (lambda: metrics.etf_distance(W[:1]), r"at least two; got shape \(1, 3\)"),
    "zero vectors": (lambda: metrics.equiangular(0 * W), "The vectors are all zero"),
    "kernel": (lambda: metrics.gnc2(W, ANY("cosine")), "`kernel` must be 'distance', 'log' or 'riesz', got 'cosine'"),
    "lengths": (
        lambda: metrics.gof_distance(W, jnp.zeros(3)),
        "`squared_lengths` must be finite, none negative, and not all",
    ),
    "lam": (
        lambda: metrics.mse_decomposition(STATS, W, lam=0),
        "`lam` must be positive, or the best classifier need not",
    ),
    "lam_H": (lambda: metrics.gof_report(STATS, [W], jnp.ones(3) / 2, lam_H=0), "`lam_H` must be positive"),
    "all collapsed": (
        lambda: metrics.gof_report(STATS, [W], jnp.zeros(3), lam_H=1),
        r"must lie in \[0, 1\) and not all be zero",
    ),
    "chain": (
        lambda: metrics.gof_report(STATS, [W[:2], W], jnp.ones(3) / 2, lam_H=1),
        "first layer first, from 3 features to 3",
    ),
    "OOD mean": (lambda: metrics.ood_orthogonality(STATS, jnp.zeros(3)), "`ood_mean` must be finite and not zero"),
    "no NCC samples": (lambda: NCCStats.init(STATS, W).mismatch(), "No samples have been counted yet"),
    "NCC labels": (lambda: NCCStats.init(STATS, W).update(X, Y + 1), "2 labels and 0 samples are not"),
    "NCC shapes": (lambda: NCCStats.init(STATS, W).update(X, Y[:2]), "`features` must have shape"),
    "layer names": (
        lambda: metrics.layerwise({"a": STATS}, weights={"b": W}),
        r"`weights` names layers without statistics: \['b'\]",
    ),
    "slope": (lambda: metrics.layerwise({"a": STATS}).slope(), "needs at least two layers"),
    "zero matrix": (lambda: metrics.spectrum(jnp.zeros((2, 2))), "`matrix` must be finite and not zero"),
    "every": (lambda: Monitor(lambda _, x: x, 3, every=0), "`every` must be at least 1, got 0"),
    "iterator": (
        lambda: Monitor(lambda _, x: x, 3, head_fn=lambda _: (W, None)).measure(0, None, iter([(X, Y)])),
        "`batches` can be gone through only once",
    ),
    "no batches": (lambda: Monitor(lambda _, x: x, 3).measure(0, None, []), "`batches` is empty"),
    "nothing measured": (lambda: Monitor(lambda _, x: x, 3).curve("nc1_pinv"), "Nothing has been measured yet"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("untyped")
def test_refused(case):
    act, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        act()


# Under `jit` the values are not known when the program is made: the samples are left out, counted, and reading raises.
@pytest.mark.parametrize("spoil", ["label", "feature"])
def test_invalid_samples_under_jit_are_never_silent(spoil):
    x, y = (X, Y.at[0].set(5)) if spoil == "label" else (X.at[0, 0].set(jnp.inf), Y)
    stats = jax.jit(lambda s, x, y: s.update(x, y))(EMPTY, x, y)
    assert stats.total == 5
    np.testing.assert_array_equal(stats.invalid, [1, 0] if spoil == "label" else [0, 1])
    name = "labels_out_of_range" if spoil == "label" else "not_finite"
    for read in (metrics.report, metrics.cdnv, ClassStats.means, ClassStats.within_cov, ClassStats.class_variances):
        with pytest.raises(ValueError, match=f"not of the data that was given.*{name} = 1"):
            read(stats.merge(EMPTY))
    ncc = jax.jit(lambda s, x, y: s.update(x, y))(NCCStats.init(STATS, W), x, y)
    with pytest.raises(ValueError, match="Samples with labels out of range"):
        ncc.mismatch()


def test_refusal_at_run_time_under_jit():
    with pytest.raises(eqx.EquinoxRuntimeError, match="All class means coincide"):
        eqx.filter_jit(metrics.report)(EMPTY.update(0 * X, Y))
    with pytest.raises(eqx.EquinoxRuntimeError, match="Some classes have no samples"):
        eqx.filter_jit(metrics.report)(EMPTY.update(X[:2], Y[:2]))


def test_documented_values():
    # One sample a class: no variance, so NC1 is zero.
    single = metrics.report(EMPTY.update(X[:3], Y[:3])).to_dict()
    assert single["nc1_pinv"] == single["nc1_quotient"] == single["cdnv"] == 0
    # Two classes of the same mean and some variance: an infinite distance-normalised variance, and all else finite.
    same = EMPTY.update(
        jnp.array([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 2, 0]]), jnp.array([0, 0, 1, 1, 2])
    )
    out = metrics.report(same).to_dict()
    assert out.pop("cdnv") == out.pop("cdnv_max") == np.inf
    assert np.all(np.isfinite(list(out.values())))
    # A classifier row, or a centred mean, of length zero has cosine zero.
    assert metrics.equiangular(jnp.array([[1.0, 0], [0, 1], [0, 0]])) == 0
    # A class that is empty is left out on demand, with its classifier.
    some = ClassStats.init(4, 3).update(X, Y)
    dropped = metrics.report(some, jnp.concatenate([W, W[:1]]), empty="drop").to_dict()
    whole = metrics.report(STATS, W).to_dict()
    assert dropped == pytest.approx(whole, rel=1e-13)
    np.testing.assert_array_equal(some.means(fill=-1)[3], jnp.full(3, -1.0))
    with pytest.raises(ValueError, match="not possible under `jit`"):
        eqx.filter_jit(lambda s: metrics.report(s, empty="drop"))(some)


def test_kinds_without_a_matrix_report_the_rest():
    for kind in ("diag", "trace"):
        out = metrics.report(ClassStats.init(3, 3, kind).update(X, Y))
        assert out.nc1_pinv is None
        assert out.nc1_quotient == pytest.approx(float(metrics.nc1_quotient(STATS)), rel=1e-13)
        assert "nc1_pinv" not in out.to_dict()
