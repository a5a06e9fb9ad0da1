import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call
from stationary_testkit import (
    converges_at_order,
    finite_difference_jvp,
    implicit_jacobian,
    max_live_bytes,
    no_retrace,
    tree_allclose,
    vjp_matches_jvp,
)


def test_tree_allclose_sees_structure_dtype_and_value():
    x = {"a": jnp.ones(2), "b": (jnp.zeros(()),)}
    assert tree_allclose(x, {"a": jnp.ones(2) + 1e-9, "b": (jnp.zeros(()),)})
    assert not tree_allclose(x, {"a": jnp.ones(2) + 1e-3, "b": (jnp.zeros(()),)})
    assert not tree_allclose(x, {"a": jnp.ones(2), "b": [jnp.zeros(())]})
    assert not tree_allclose(jnp.ones(2), jnp.ones(2, jnp.float32))
    assert not tree_allclose(jnp.ones(2), jnp.ones(3))


def test_finite_differences_match_a_known_derivative():
    primals = ({"x": jnp.array([0.3, 1.2])}, jnp.array(2.0))
    tangents = ({"x": jnp.array([1.0, -0.5])}, jnp.array(0.25))

    def fn(tree, scale):
        return jnp.sin(tree["x"]) * scale

    _, expected = jax.jvp(fn, primals, tangents)
    assert tree_allclose(finite_difference_jvp(fn, primals, tangents), expected, rtol=1e-9)


def test_finite_differences_refuse_integers():
    with pytest.raises(ValueError, match="floating point"):
        finite_difference_jvp(lambda x: x, (jnp.arange(2),), (jnp.arange(2),))


def test_vjp_matches_jvp(getkey):
    x = jnp.linspace(0.1, 1.0, 4)
    assert vjp_matches_jvp(lambda y, s: {"out": jnp.cumsum(jnp.exp(y)) * s}, (x, jnp.array(1.5)), key=getkey())


def test_a_wrong_transpose_is_seen(getkey):
    def fn(x):
        return linear_call(lambda _, x: 3 * x, lambda _, g: 2 * g, (), x)

    assert not vjp_matches_jvp(fn, (jnp.ones(3),), key=getkey())


def test_implicit_jacobian_of_a_square_root():
    args = {"a": jnp.array([4.0, 9.0])}
    y = jnp.sqrt(args["a"])
    actual = implicit_jacobian(lambda y, args: y**2 - args["a"], y, args)
    assert tree_allclose(actual, jnp.diag(0.5 / y), rtol=1e-12)


def test_no_retrace():
    fn = no_retrace(lambda x: x + 1)
    fn(jnp.zeros(2))
    fn(jnp.ones(2))
    with pytest.raises(RuntimeError):
        fn(jnp.ones(3))


def test_order_of_iterates():
    newton = [1e-1, 1e-2, 1e-4, 1e-8, 1e-16]
    linear = [2.0**-k for k in range(10)]
    assert converges_at_order(newton, 2)
    assert not converges_at_order(linear, 2)
    assert converges_at_order(linear, 1)
    with pytest.raises(ValueError, match="three"):
        converges_at_order([1.0, 0.1], 1)


def test_order_of_a_discretisation():
    steps = [0.1, 0.05, 0.025]
    assert converges_at_order([h**2 for h in steps], 2, steps=steps)
    assert not converges_at_order([h**2 for h in steps], 3, steps=steps)


class _Scale(eqx.Module):
    factor: jax.Array
    name: str = eqx.field(static=True)


def test_max_live_bytes_sees_a_matrix_that_is_never_returned():
    def outer(scale, x):
        return jnp.sort(x[:, None] * x[None, :], axis=0).sum() * scale.factor

    n = 256
    scale = _Scale(jnp.array(2.0), "s")
    live = max_live_bytes(outer, scale, jnp.ones(n))
    assert live >= n * n * np.dtype(np.float64).itemsize
    assert max_live_bytes(lambda x: x.sum(), jnp.ones(n)) < 10 * n
