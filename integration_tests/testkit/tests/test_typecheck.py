import beartype.roar
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, jaxtyped
from stationary_testkit import typecheck


def test_typecheck_checks_shapes():
    @jaxtyped(typechecker=typecheck)
    def inner(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.vdot(x, y)

    inner(jnp.ones(2), jnp.ones(2))
    with pytest.raises(Exception, match="inner"):
        inner(jnp.ones(2), jnp.ones(3))


def test_typecheck_checks_containers():
    @typecheck
    def first(xs: list[int]) -> int:
        return xs[0]

    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        first(["a"])
