"""Diagnostics against dense matrices and known examples."""

import equinox as eqx
import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fixedpoint_eq import diagnostics
from stationary_testkit import tree_allclose


affine = lambda z, M: M @ z


def test_spectral_radius_of_random_matrices(getkey):
    # FPE-9: not symmetric, so the dominant eigenvalues come in pairs.
    M = jr.normal(getkey(), (256, 256)) / 16
    M = M.at[:, :2].add(jnp.outer(jr.normal(getkey(), (256,)), jnp.array([0.05, 0.0])))
    truth = np.abs(np.linalg.eigvals(M)).max()
    run = eqx.filter_jit(lambda M, k: diagnostics.spectral_radius(affine, jnp.zeros(256), M, num_steps=k))
    # A disc of eigenvalues has none that stands out: twenty products come near, sixty nearer.
    assert abs(float(run(M, 60).radius) / truth - 1) < 0.02
    small = M[:12, :12]
    estimate = diagnostics.spectral_radius(affine, jnp.zeros(12), small, num_steps=40)
    assert float(estimate.radius) == pytest.approx(np.abs(np.linalg.eigvals(small)).max(), rel=1e-8)
    assert float(estimate.error) < 1e-8


def test_spectral_radius_of_a_rotation_and_of_samples():
    # The power method never settles on a complex pair.
    angle = jnp.array([[0.0, -0.5], [0.5, 0.0]])
    assert tree_allclose(diagnostics.spectral_radius(affine, jnp.ones(2), angle).radius, jnp.array(0.5), rtol=1e-10)
    fn = lambda z, scale: scale[:, None] * (z @ angle.T)
    estimate = diagnostics.spectral_radius(fn, jnp.ones((3, 2)), jnp.array([1.0, 0.2, 0.0]), batch_axis=0)
    assert tree_allclose(estimate.radius, jnp.array([0.5, 0.1, 0.0]), rtol=1e-10)
    # Complex states.
    estimate = diagnostics.spectral_radius(lambda z, _: 0.3j * z, jnp.ones(2, complex))
    assert tree_allclose(estimate.radius, jnp.array(0.3), rtol=1e-10)


def test_error_of_the_spectral_radius_is_honest(getkey):
    # For a normal matrix there is an eigenvalue within the error.
    M = jr.normal(getkey(), (40, 40))
    M = (M + M.T) / 20
    eigenvalues = np.linalg.eigvalsh(M)
    for k in (2, 5, 10, 20):
        estimate = diagnostics.spectral_radius(affine, jnp.zeros(40), M, num_steps=k)
        assert np.abs(eigenvalues - complex(estimate.eigenvalue)).min() <= float(estimate.error) + 1e-12


def test_contraction_at_a_state(getkey):
    M = jr.normal(getkey(), (6, 6)) / 4
    run = lambda norm: diagnostics.contraction(affine, jnp.ones(6), M, norm=norm)
    two, sided, infinity, empirical = map(run, ("two", "one-sided", "infinity", "empirical"))
    assert tree_allclose(two.factor, jnp.linalg.norm(M, 2), rtol=1e-10)
    assert tree_allclose(sided.factor, jnp.linalg.eigvalsh((M + M.T) / 2)[-1], rtol=1e-10)
    assert float(infinity.factor) == pytest.approx(np.abs(np.linalg.eigvals(np.abs(M))).max(), rel=1e-6)
    assert 0.5 * two.factor < empirical.factor <= two.factor * (1 + 1e-12)
    assert {c.kind for c in (two, sided, infinity, empirical)} == {"estimated"}


@pytest.mark.parametrize(
    "make", [lambda W: diagnostics.layer_contraction([W]), lambda W: diagnostics.perron_contraction(jnp.abs(W))]
)
def test_proved_factors_hold(make, getkey):
    W = jr.uniform(getkey(), (5, 5), minval=-0.3, maxval=0.3)
    found = make(W)
    assert found.kind == "proved"
    assert float(found.factor) < 1
    a, b = 3 * jr.normal(getkey(), (2, 100, 5))
    fn = lambda z: jnp.tanh(W @ z + 0.1)
    shrunk = jax.vmap(lambda a, b: found.distance(fn(a) - fn(b)) / found.distance(a - b))(a, b)
    assert jnp.max(shrunk) <= found.factor * (1 + 1e-12)
    # The factor certifies solutions.
    solution = fpe.solve(lambda z, _: fn(z), jnp.zeros(5), None, fpe.Picard(1e-3, 1e-3), contraction=found)
    exact = fpe.solve(lambda z, _: fn(z), jnp.zeros(5), None, fpe.Picard(1e-14, 1e-14)).value
    assert solution.certificate is not None
    assert found.distance(solution.value - exact) <= solution.certificate.value
    assert solution.certificate.kind == "proved"
    assert found.norm in solution.certificate.quantity


def test_perron_beats_the_plain_norms():
    # Triangular: the infinity norm is 5, the spectral radius 0.5. Nor is a zero matrix a problem.
    bound = jnp.array([[0.5, 4.5], [0.0, 0.5]])
    assert float(diagnostics.perron_contraction(bound).factor) < 0.6
    assert float(diagnostics.perron_contraction(jnp.zeros((2, 2))).factor) == 0.0


def test_asymmetry_exact_and_by_draws(getkey):
    M = jr.normal(getkey(), (20, 20))
    exact = diagnostics.asymmetry(affine, jnp.zeros(20), M)
    assert tree_allclose(exact.antisymmetric, jnp.linalg.norm(M - M.T) / 2, rtol=1e-12)
    assert tree_allclose(exact.symmetric, jnp.linalg.norm(M + M.T) / 2, rtol=1e-12)
    # Beyond 512 unknowns: block diagonal, so that the truth is known.
    fn = lambda z, M: (z.reshape(30, 20) @ M.T).ravel()
    drawn = diagnostics.asymmetry(fn, jnp.zeros(600), M, key=getkey())
    for name in ("antisymmetric", "symmetric"):
        truth = float(np.sqrt(30.0)) * getattr(exact, name)
        assert abs(getattr(drawn, name) - truth) <= 4 * getattr(drawn, name + "_error") < 0.1 * truth


def test_alignment():
    x = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([2.0]), "c": jnp.zeros(2)}
    y = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([-3.0]), "c": jnp.ones(2)}
    expected = {"a": jnp.sqrt(jnp.array(0.5)), "b": jnp.array(-1.0), "c": jnp.array(0.0)}
    assert tree_allclose(diagnostics.alignment(x, y), expected, rtol=1e-12)


def test_is_holomorphic(getkey):
    z = jr.normal(getkey(), (3,), complex)
    assert bool(diagnostics.is_holomorphic(lambda z, _: jnp.tanh(z) * z, z))
    for fn in (lambda z, _: z.conj(), lambda z, _: jnp.abs(z).astype(complex), lambda z, _: z.real.astype(complex)):
        assert not bool(diagnostics.is_holomorphic(fn, z))


@pytest.mark.usefixtures("untyped")
def test_bad_input():
    with pytest.raises(ValueError, match="`norm`"):
        diagnostics.contraction(affine, jnp.ones(2), jnp.eye(2), norm="three")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`bound` must be a square"):
        diagnostics.perron_contraction(jnp.ones((2, 3)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="negative"):
        jax.block_until_ready(diagnostics.perron_contraction(-jnp.ones((2, 2))).factor)
    with pytest.raises(ValueError, match="`num_steps`"):
        diagnostics.spectral_radius(affine, jnp.ones(2), jnp.eye(2), num_steps=0)
    with pytest.raises(ValueError, match="`batch_axis` must be 0 or `None`; got 1"):
        diagnostics.spectral_radius(affine, jnp.ones(2), jnp.eye(2), batch_axis=1)
    with pytest.raises(TypeError, match="for real states; got a complex one"):
        diagnostics.contraction(affine, jnp.ones(2, complex), jnp.eye(2, dtype=complex), norm="infinity")
    with pytest.raises(TypeError, match="`z` must be real; got leaves of complex128"):
        diagnostics.asymmetry(affine, jnp.ones(2, complex), jnp.eye(2, dtype=complex))
    with pytest.raises(TypeError, match="`z` must be complex in every leaf; got leaves of float64"):
        diagnostics.is_holomorphic(affine, jnp.ones(2), jnp.eye(2))
    with pytest.raises(ValueError, match="one number for each"):
        diagnostics.layer_contraction([jnp.eye(2)], [1.0, 1.0])
