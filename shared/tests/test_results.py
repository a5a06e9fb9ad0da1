import equinox as eqx
import implicit_core
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
import pytest
from implicit_core import RESULTS
from implicit_core.certify import Certificate


def test_results_extend_the_libraries():
    assert RESULTS.promote(lx.RESULTS.stagnation) == RESULTS.stagnation
    assert RESULTS.promote(optx.RESULTS.nonfinite) == RESULTS.nonfinite
    assert "curvature" in RESULTS[RESULTS.indefinite]

    # A package's own extension makes no warning (warnings are errors here).
    class Further(RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
        own = "Something of the package."

    assert Further.promote(RESULTS.indefinite) == Further.indefinite


def test_results_raise_their_text():
    with pytest.raises(Exception, match="non-positive curvature"):
        eqx.filter_jit(lambda x: RESULTS.indefinite.error_if(x, x > 0))(jnp.array(1.0))


def test_certificate():
    certificate = Certificate("marginal error", jnp.array(1e-9), "proved", ("up to rounding",))
    assert certificate.true_relres is None
    batch = jax.vmap(lambda v: Certificate("error", v, "estimated"))(jnp.arange(3.0))
    assert jnp.shape(batch.value) == (3,)
    # The run-time type checker of the tests may be quicker than our own check.
    with pytest.raises(Exception, match="kind"):
        Certificate("error", jnp.array(0.0), "certain")  # pyright: ignore[reportArgumentType]


def test_public_names():
    for name in implicit_core.__all__:
        member = getattr(implicit_core, name)
        assert member.__doc__
        for inner in getattr(member, "__all__", []):
            assert getattr(member, inner).__doc__
