import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest


pytest_plugins = ["pytester"]


def test_numerical_policy():
    assert jnp.ones(1).dtype == jnp.float64
    with pytest.raises(Exception, match="promotion"):
        _ = jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.float64)
    with pytest.raises(ValueError, match="rank"):
        _ = jnp.ones((2, 2)) + jnp.ones(2)


def test_getkey_is_fresh_at_each_call(getkey):
    assert float(jr.normal(getkey())) != float(jr.normal(getkey()))


def test_getkey_depends_on_the_test_alone(getkey, pytestconfig):
    if pytestconfig.option.fuzz_seed is None:
        # Pinned: whoever changes the seeding changes every red run's meaning.
        assert repr(getkey) == "getkey(seed=2055204444)"


_PRINTS_SEED = """
    def test_seed(getkey):
        print("SEED", getkey)
"""


@pytest.fixture
def seeds(pytester):
    pytester.makepyfile(_PRINTS_SEED)

    def run(*args):
        result = pytester.runpytest_inprocess("-q", "-s", *args)
        result.assert_outcomes(passed=1)
        return next(line for line in result.outlines if "SEED" in line)

    return run


def test_fuzz_draws_and_repeats(seeds):
    plain = seeds()
    assert plain == seeds()
    assert seeds("--fuzz") != plain
    assert seeds("--fuzz-seed=7") == seeds("--fuzz-seed=7") != plain


def test_gpu_marker_skips_without_a_gpu(pytester):
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has a GPU")
    pytester.makepyfile("import pytest\n\n@pytest.mark.gpu\ndef test_cuda():\n    raise AssertionError\n")
    pytester.runpytest_inprocess("--strict-markers").assert_outcomes(skipped=1)


def test_draws_are_numpys_and_repeatable(rng, normal, uniform):
    assert normal((3, 2)).shape == (3, 2)
    assert normal((4,), jnp.complex64).dtype == jnp.complex64
    assert float(jnp.std(jnp.abs(normal((4000,), complex)) ** 2)) == pytest.approx(1.0, abs=0.1)
    draws = uniform((1000,), 2.0, 3.0, jnp.float32)
    assert draws.dtype == jnp.float32
    assert 2 <= float(draws.min()) < float(draws.max()) <= 3
    assert isinstance(rng, np.random.Generator)
