"""The parts to write a Krylov solver from, on states of several kinds."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from implicit_core.krylov import real_dtype, stack_combine, stack_dot, stop_gradient, tree_axpy, tree_dot, tree_norm


def _vector(key, kind):
    a, b = jr.split(key)
    first = jr.normal(a, (2, 3), jnp.complex128 if kind == "complex" else jnp.float64)
    return (first, jr.normal(b, (4,), {"real": jnp.float32, "mixed": jnp.complex64, "complex": jnp.complex64}[kind]))


def _flat(tree):
    return np.concatenate([np.asarray(leaf, complex).ravel() for leaf in tree])


@pytest.mark.parametrize("kind", ["real", "mixed", "complex"])
def test_against_numpy(kind, getkey):
    vectors = [_vector(getkey(), kind) for _ in range(3)]
    stack = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *vectors)
    w = _vector(getkey(), kind)
    products = np.array([np.vdot(_flat(v), _flat(w)) for v in vectors])
    assert real_dtype(w) == jnp.float64
    assert np.allclose(tree_dot(vectors[0], w), products[0].real, rtol=1e-6)
    assert np.allclose(tree_norm(w), np.linalg.norm(_flat(w)), rtol=1e-6)
    got = stack_dot(stack, w)
    # Where only some leaves are complex the space is a real one.
    assert jnp.iscomplexobj(got) == (kind == "complex")
    assert np.allclose(got, products if kind == "complex" else products.real, rtol=1e-6)
    weights = jnp.array([1.0, -2.0, 0.5])
    combined = stack_combine(weights, stack)
    assert np.allclose(
        _flat(combined), sum(a * _flat(v) for a, v in zip(np.asarray(weights), vectors, strict=True)), rtol=1e-6
    )
    for alpha in (2, 2.0, jnp.array(2.0)):
        moved = tree_axpy(alpha, w, vectors[0])
        assert [leaf.dtype for leaf in moved] == [leaf.dtype for leaf in w]
        assert np.allclose(_flat(moved), 2 * _flat(w) + _flat(vectors[0]), rtol=1e-6)


def test_no_leaf_is_an_error():
    with pytest.raises(ValueError, match="at least one array"):
        real_dtype(())


def test_stop_gradient_passes_what_is_no_array():
    fn = lambda x: jnp.sum(stop_gradient({"x": x, "name": "a", "none": None})["x"] * x)
    assert jax.grad(fn)(jnp.array([3.0]))[0] == 3
