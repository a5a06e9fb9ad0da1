import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
import pytest
from jaxtyping import Array, Float


N = 12
ANGLE = (math.sqrt(5) - 1) / 2


class Peaks(kv.AbstractDictionary):
    """Peaks exp(-r/w) on the circle of length one: their span is far from invariant."""

    centres: Array
    widths: Array

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " N"]:
        distance = jnp.abs((x - self.centres + 0.5) % 1 - 0.5)
        return jnp.exp(-distance / self.widths)

    def supremum(self) -> Float[Array, " N"]:
        return jnp.ones_like(self.widths)

    def lipschitz(self) -> Float[Array, " N"]:
        return 1 / self.widths


def turn(x):
    return (x + ANGLE) % 1


def peaks(dtype=jnp.float64):
    widths = 0.15 + 0.2 * jr.uniform(jr.key(2), (N,), dtype)
    return Peaks((jnp.arange(N, dtype=dtype) + jr.uniform(jr.key(1), (N,), dtype) / 2) / N, widths)


def snapshots(key, num, **kwargs):
    x = jr.uniform(key, (num, 1))
    return kv.Snapshots(x, turn(x), **kwargs)


def nodes(num):
    x = (jnp.arange(float(num))[:, None] + 0.5) / num
    return kv.Snapshots(x, turn(x), kind="quadrature")


@pytest.fixture(scope="module")
def fit():
    return kv.edmd(kv.factor(peaks(), snapshots(jr.key(0), 60))).sorted()


@pytest.fixture(scope="module")
def held():
    """One hold-out set for many tests: another number of snapshots would compile everything again."""
    return snapshots(jr.key(5), 2000)


@pytest.fixture(scope="module")
def truth():
    reference = kv.factor(peaks(), nodes(20_000))
    return lambda pairs: reference.residual(pairs.eigenvalues, reference.R11.astype(complex) @ pairs.coefficients)


def fourier(dtype=jnp.float64):
    x = (2 * np.pi / 64 * jnp.arange(64.0)).astype(dtype)[:, None]
    return kv.edmd(kv.factor(kv.Fourier(range(-8, 9)), kv.Snapshots(x, x + 1, kind="quadrature")))


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float64, 1e-13), (jnp.float32, 1e-4)])
def test_exact_integrals(dtype, limit):
    certificate = kv.certify(fourier(dtype), kv.ExactIntegrals("64 equispaced nodes, |k| <= 8"))
    assert certificate.kind == "exact"
    assert certificate.level == 1.0
    assert certificate.upper.dtype == dtype
    assert np.all((certificate.upper >= 0) & (certificate.upper <= limit))
    assert np.all(certificate.status == "certified")
    assert all(r == () for r in certificate.reasons)
    assert int(certificate.trivial.sum()) == 1  # the constant
    assert "64 equispaced nodes" in certificate.assumptions[0]


def test_exact_integrals_need_a_rule(fit):
    with pytest.raises(ValueError, match="nodes of a quadrature rule"):
        kv.certify(fit, kv.ExactIntegrals("because"))
    with pytest.raises(ValueError, match="`reason`"):
        kv.ExactIntegrals(" ")


def test_training_is_never_a_certificate(fit):
    certificate = kv.certify(fit)
    assert certificate.kind == "training"
    assert certificate.level == 0.0
    assert not certificate.certified.any()
    assert np.all(certificate.status == "uncertifiable")
    assert all(reasons[0].startswith("training") for reasons in certificate.reasons)
    assert "M = 60" in certificate.assumptions[0]
    assert "10 N" in certificate.assumptions[0]


def test_holdout(fit, held, truth):
    certificate = kv.certify(fit, held, tol=0.5)
    true = truth(fit)
    assert certificate.kind == "holdout"
    assert certificate.level == 0.99
    good = np.asarray(certificate.supported)
    assert good.sum() >= 9
    assert np.all((certificate.lower <= true)[good])
    assert np.all((true <= certificate.upper)[good])
    assert np.median((certificate.upper / true)[good]) < 1.15
    assert np.sum(fit.residuals < true) >= 9  # what the fit claims is too good
    assert {"certified", "refuted"} <= set(certificate.status.tolist())
    np.testing.assert_array_equal(certificate.status == "certified", np.asarray(certificate.upper <= 0.5) & good)
    text = str(certificate)
    assert text.count("\n") == N + 1
    assert "refuted" in text
    assert "level 0.99" in text
    assert any("independent draws" in line for line in certificate.assumptions)
    assert any("box" in line for line in certificate.assumptions)


def test_holdout_of_a_single_pair(fit, held):
    many = kv.certify(fit, held)
    one = kv.certify(fit[0], held)
    assert one.status.shape == ()
    assert one.upper.shape == ()
    assert one.status == "certified"
    assert one.upper < many.upper[0]  # one bound to share the level with, not twelve
    assert len(one.reasons) == 1
    assert "certified" in str(one)
    assert one.relative_to_identity == one.upper / abs(1 - fit.eigenvalues[0])


def test_higher_level_is_wider(fit, held):
    low, high = kv.certify(fit, held, level=0.9), kv.certify(fit, held)
    assert np.all(low.upper < high.upper)
    assert np.all(low.lower > high.lower)


def test_no_false_certificate_over_fifty_seeds(truth):
    rows = []
    for seed in range(52):
        num = (15, 36, 120)[seed % 3]
        first, second = jr.split(jr.key(seed))
        pairs = kv.edmd(kv.factor(peaks(), snapshots(first, num)))
        certificate = kv.certify(pairs, snapshots(second, 600))
        rows.append((certificate.supported, certificate.lower, certificate.upper, truth(pairs), pairs.residuals))
    supported, lower, upper, true, training = (np.array(part) for part in zip(*rows, strict=True))
    assert len(true) == 52
    assert supported.mean() > 0.5
    assert not np.any(supported & (upper < true))
    assert not np.any(supported & (lower > true))
    assert np.mean(np.any(training < true, axis=1)) > 0.9
    assert np.median((upper / true)[supported]) < 1.4


def test_bernstein(fit, truth):
    many = snapshots(jr.key(6), 20_000)
    sup = jnp.max(jnp.abs(jax.vmap(fit.functions)(nodes(5000).x)), axis=0) * 1.01
    certificate = kv.certify(fit, many, method="bernstein", bound=sup)
    true = truth(fit)
    assert certificate.rigorous.all()
    assert np.all(true <= certificate.upper)
    assert np.all(certificate.lower <= true)
    assert np.median(certificate.upper / true) < 1.3
    auto = kv.certify(fit, many, bound=sup)
    assert auto.rigorous.any()
    assert np.all(auto.upper[auto.supported] >= true[auto.supported])
    assert any("rigorous at this sample size" in line for line in auto.assumptions)
    # From the suprema of the dictionary alone the bound still holds, and is wider.
    wide = kv.certify(fit, many, method="bernstein")
    assert np.all(wide.upper >= certificate.upper)


def test_few_snapshots_or_few_that_matter_are_refused(fit):
    certificate = kv.certify(fit, snapshots(jr.key(5), 25))
    assert not certificate.certified.any()
    assert all(any(r.startswith("few") for r in rs) for rs in certificate.reasons)

    def spike(x):
        return jnp.exp(-((x - 0.5) ** 2) / 2e-4)

    narrow = kv.interop.from_eigenvectors([0.5], np.ones((1, 1)), spike)
    certificate = kv.certify(narrow, snapshots(jr.key(5), 300))
    assert certificate.status[0] == "uncertifiable"
    assert certificate.reasons[0][0].startswith("concentrated")


def test_tails_that_cancel_in_the_difference_do_not_fool_the_bound():
    # n and d are both carried by one twentieth of the circle, by different ones: their skewness cancels in n - d.
    def spike(x):
        return jnp.exp(-((x - 0.5) ** 2) / 4e-4)

    pairs = kv.interop.from_eigenvectors([1e-3], np.ones((1, 1)), spike)

    def once(key):
        certificate = kv.certify(pairs, snapshots(key, 1500), level=0.98)
        return certificate.upper[0], certificate.supported[0]

    upper, supported = jax.jit(jax.vmap(once))(jr.split(jr.key(9), 500))
    true = math.sqrt(1 + 1e-6)
    assert np.mean(supported) > 0.5
    assert np.mean(supported & (upper < true)) <= 0.01 + 3 * math.sqrt(0.01 / 500)


def test_duplicates_are_refused(fit, held):
    double = kv.Snapshots(held.x.at[7].set(held.x[3]), held.y.at[7].set(held.y[3]))
    assert all(any(r.startswith("duplicates") for r in reasons) for reasons in kv.certify(fit, double).reasons)


def test_rounding_is_refused():
    def nearly_dependent(x):
        z = jax.lax.complex(jnp.cos(2 * np.pi * x[0]), jnp.sin(2 * np.pi * x[0]))
        return jnp.stack([z, z + 1e-10 * z**2])

    pairs = kv.edmd(kv.factor(nearly_dependent, snapshots(jr.key(0), 100)))
    certificate = kv.certify(pairs, snapshots(jr.key(1), 100))
    worst = int(np.argmax(certificate.rounding))
    assert certificate.rounding[worst] > 1e-8
    assert certificate.status[worst] == "uncertifiable"
    assert certificate.reasons[worst][0].startswith("rounding")


def test_trajectory_is_averaged_in_blocks(fit, truth):
    x = (0.1 + jnp.arange(8001.0) * ANGLE) % 1
    certificate = kv.certify(fit, kv.Snapshots.from_trajectory(x))
    assert any("blocks of" in line for line in certificate.assumptions)
    true, good = truth(fit), certificate.supported
    assert good.sum() >= 6
    assert np.all((true <= certificate.upper)[good])
    short = kv.certify(fit, kv.Snapshots.from_trajectory(x[:200]), block=20)
    assert all(any(r.startswith("few") for r in reasons) for reasons in short.reasons)


def test_many_short_runs_share_blocks():
    # Five steps of each of 1000 runs that hardly move: what is independent is the runs, not the steps.
    start = jr.normal(jr.key(4), (1000, 1, 1))
    runs = start + 0.05 * jnp.arange(6.0)[None, :, None]
    pairs = kv.interop.from_eigenvectors([0.5], np.ones((1, 1)), lambda x: x)
    certificate = kv.certify(pairs, kv.Snapshots.from_trajectory(runs))
    blocks = next(line for line in certificate.assumptions if "blocks" in line)
    assert 15 <= int(blocks.split("blocks of ")[1].split()[0]) <= 40
    # With x = z + s, s = 0, ..., 0.2 in steps of 0.05: E (x + 0.05 - x / 2)^2 / E x^2.
    s = 0.05 * np.arange(5)
    true = math.sqrt(np.mean(0.25 + (s / 2 + 0.05) ** 2) / np.mean(1 + s**2))
    assert certificate.lower[0] < true < certificate.upper[0] < 1.1 * true


def test_slow_trajectory_gets_long_blocks():
    # An autoregressive path: y is the next state, and neighbours in time are much alike.
    noise = jr.normal(jr.key(3), (100_000,))
    step = lambda z, e: (0.98 * z + 0.2 * e, z)
    path = jax.lax.scan(step, jnp.zeros(()), noise)[1]
    pairs = kv.interop.from_eigenvectors([0.5], np.ones((1, 1)), lambda x: x)
    certificate = kv.certify(pairs, kv.Snapshots.from_trajectory(path))
    blocks = next(line for line in certificate.assumptions if "blocks" in line)
    assert 100 < int(blocks.split("blocks of ")[1].split()[0]) < 1500
    # residual^2 = E (x' - x/2)^2 / E x^2 = 1 - rho + 1/4 with rho = 0.98
    true = math.sqrt(1 - 0.98 + 0.25)
    assert certificate.status[0] == "certified"
    assert certificate.lower[0] < true < certificate.upper[0]


def test_known_modulus_bounds_the_truth_and_tightens(fit, truth):
    true, widths = truth(fit), []
    for num in (2000, 16_000):
        certificate = kv.certify(fit, kv.KnownModulus(nodes(num), modulus=1.0, radii=0.5 / num))
        assert certificate.kind == "quadrature"
        assert certificate.level == 1.0
        finite = np.isfinite(certificate.upper)
        assert np.all(certificate.lower <= true)
        assert np.all((true <= certificate.upper)[finite])
        widths.append(np.where(finite, certificate.upper - certificate.lower, np.inf))
    assert finite.all()
    assert np.all(widths[1] < 0.2 * widths[0])
    noisy = kv.KnownModulus(nodes(16_000), modulus=lambda r: r, radii=np.full(16_000, 0.5 / 16_000), error=1e-4)
    assert np.all(kv.certify(fit, noisy).upper > certificate.upper)


def test_known_modulus_on_few_nodes_holds_where_the_sum_alone_fails(fit, truth):
    # Twelve functions on sixteen nodes: the sum is far from the integral, the bound is not.
    true = truth(fit)
    certificate = kv.certify(fit, kv.KnownModulus(nodes(16), 1.0, 0.5 / 16))
    assert np.any(certificate.estimate < 0.99 * true)
    assert np.all(certificate.upper >= true)


def test_measure_preservation(fit, held):
    audit = kv.audit_measure_preserving(fit, held)
    assert not audit.violated.any()
    assert 0 < audit.defect < 1
    declared = kv.certify(fit, held, measure_preserving=True)
    np.testing.assert_array_equal(declared.supported, kv.certify(fit, held).supported)
    # A contraction to a point: the defect is seen, and is what the excess is measured against.
    x = jr.uniform(jr.key(8), (300, 1))
    held = kv.Snapshots(x, x / 2)
    half = kv.interop.from_eigenvectors([0.5], np.ones((1, 1)), lambda x: x)
    audit = kv.audit_measure_preserving(half, held)
    np.testing.assert_allclose(audit.defect, 0.75, rtol=1e-12)
    np.testing.assert_allclose(audit.excess, 0, atol=1e-12)
    # Expansion: 1 - sqrt(1 - delta) cannot excuse it.
    double = kv.interop.from_eigenvectors([3.0], np.ones((1, 1)), lambda x: x)
    held = kv.Snapshots(x, 3 * x)
    assert kv.audit_measure_preserving(double, held).violated.all()
    certificate = kv.certify(double, held, measure_preserving=True)
    assert certificate.reasons[0][0].startswith("isometry")
    assert kv.audit_measure_preserving(kv.factor(lambda x: x, held), held).defect == pytest.approx(8)


def test_float32():
    x = jr.uniform(jr.key(0), (400, 1), jnp.float32)
    pairs = kv.edmd(kv.factor(peaks(jnp.float32), kv.Snapshots(x, turn(x))))
    fresh = jr.uniform(jr.key(1), (1000, 1), jnp.float32)
    certificate = kv.certify(pairs, kv.Snapshots(fresh, turn(fresh)))
    assert certificate.upper.dtype == jnp.float32
    assert certificate.supported.sum() >= 8
    assert np.all(certificate.rounding > 1e-7)


def test_jit_and_eager_agree(fit, held):
    eager, jitted = kv.certify(fit, held), eqx.filter_jit(kv.certify)(fit, held)
    np.testing.assert_allclose(jitted.upper, eager.upper, rtol=1e-10)
    np.testing.assert_array_equal(jitted.status, eager.status)


def test_a_batch_of_fits_makes_one_lapack_call_at_a_time():
    # JAX's CPU backend locks up under `vmap` where there are as many independent batched LAPACK calls as it has workers.
    def fitted(x):
        return kv.edmd(kv.factor(peaks(), kv.Snapshots(x, turn(x))))

    text = str(jax.make_jaxpr(lambda x: fitted(x).residuals)(jnp.ones((60, 1))))
    assert [text.count(f" {name}[") for name in ("triangular_solve", "svd", "eig")] == [1, 1, 1]


def test_bad_input(fit, held):
    with pytest.raises(ValueError, match="`level` must be between 0 and 1; got 1"):
        kv.certify(fit, held, level=1.0)
    with pytest.raises(ValueError, match="`tol` must be positive"):
        kv.certify(fit, held, tol=0.0)
    with pytest.raises(ValueError, match="states of dimension 1"):
        kv.certify(fit, kv.Snapshots(jnp.ones((50, 2)), jnp.ones((50, 2))))
    with pytest.raises(ValueError, match="that the fit has used"):
        kv.certify(fit, snapshots(jr.key(0), 60))
    with pytest.raises(ValueError, match="is not random"):
        kv.certify(fit, nodes(100))
    with pytest.raises(ValueError, match="must be finite"):
        kv.Snapshots(held.x.at[3].set(jnp.nan), held.y)
    with pytest.raises(ValueError, match="at least two"):
        kv.certify(fit, snapshots(jr.key(5), 1))
    with pytest.raises(ValueError, match="bounded dictionary"):
        kv.certify(fit, snapshots(jr.key(5), 50, weights=np.ones(50)), method="bernstein")
    with pytest.raises(ValueError, match="`bound` must be one number or"):
        kv.certify(fit, held, bound=np.ones(3))
    with pytest.raises(ValueError, match="too short for two blocks"):
        kv.certify(fit, snapshots(jr.key(5), 50, kind="trajectory"), block=40)
    with pytest.raises(ValueError, match="pass some as `holdout`"):
        kv.certify(fit, measure_preserving=True)
    with pytest.raises(ValueError, match="`radii` must be one number or"):
        kv.KnownModulus(nodes(10), 1.0, np.ones(4))
    with pytest.raises(ValueError, match="`modulus` must be finite and not negative"):
        kv.KnownModulus(nodes(10), -1.0, 0.1)
    plain = kv.interop.from_eigenvectors([1.0], np.ones((1, 1)), lambda x: jnp.cos(x))
    with pytest.raises(ValueError, match="pass `lipschitz`"):
        kv.certify(plain, kv.KnownModulus(nodes(10), 1.0, 0.05))
