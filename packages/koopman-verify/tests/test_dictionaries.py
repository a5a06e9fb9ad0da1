from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import koopman_verify as kv
import numpy as np
import pytest
import scipy.special as sp
from jaxtyping import TypeCheckError


CENTRES = np.random.default_rng(0).normal(size=(7, 2))
K = np.arange(-3, 4)

# (dictionary, lower and upper corner of where to sample it)
DICTIONARIES = {
    "fourier": (lambda: kv.Fourier(range(-3, 4)), [-4.0], [4.0]),
    "fourier2": (lambda: kv.Fourier([[1, 0], [2, -3]], period=1.0), [-1.0, -1.0], [1.0, 1.0]),
    "hermite": (lambda: kv.Hermite(9, centre=0.3, scale=0.5), [-4.0], [4.0]),
    "hermite2": (lambda: kv.Hermite(4, 2, scale=[0.5, 2.0], index_set="hyperbolic"), [-3.0, -3.0], [3.0, 3.0]),
    "legendre": (lambda: kv.Legendre(7, -1.0, 0.5), [-1.5], [1.0]),
    "legendre2": (lambda: kv.Legendre(4, [-1.0, 0.0], [1.0, 3.0]), [-1.0, 0.0], [1.0, 3.0]),
    "chebyshev": (lambda: kv.Chebyshev(6, 0.0, 3.0), [-0.5], [3.5]),
    "chebyshev2": (lambda: kv.Chebyshev(3, -2.0, [2.0, 3.0], index_set="tensor"), [-2.0, -2.0], [2.0, 3.0]),
    "hats": (lambda: kv.Hats([0.1, 0.4, 3.0, 5.0]), [-4.0], [8.0]),
    "constant": (kv.Constant, [-1.0], [1.0]),
    "product": (
        lambda: kv.Product([kv.Fourier(K), kv.Hermite(3)], [1, 1], kv.index_products([abs(K), range(4)], 3)),
        [-4.0, -3.0],
        [4.0, 3.0],
    ),
    "concatenate": (lambda: kv.Concatenate([kv.Constant(), kv.Fourier([1, 2]), kv.Hermite(2)]), [-3.0], [3.0]),
    "delay": (lambda: kv.Delay(kv.Hermite(2), 3), [-2.0] * 3, [2.0] * 3),
} | {
    f"rbf-{profile}": (lambda profile=profile: kv.RBF(CENTRES, cast(Any, profile)), [-2.0, -2.0], [2.0, 2.0])
    for profile in ("gaussian", "exponential", "laplacian", "lorentzian", "matern32", "matern52")
}


values = eqx.filter_jit(lambda dictionary, x: jax.vmap(dictionary)(x))

gradient = eqx.filter_jit(lambda dictionary, x: jax.grad(lambda z: jnp.sum(jnp.abs(dictionary(z) + 2)))(x))


@pytest.fixture(params=DICTIONARIES)
def case(request):
    make, lower, upper = DICTIONARIES[request.param]
    return make(), np.array(lower), np.array(upper)


def test_bounds_hold_and_are_not_idle(case):
    """Values and difference quotients on a sample stay below the bounds, and the largest come near in one dimension."""
    dictionary, lower, upper = case
    rng = np.random.default_rng(1)
    x = rng.uniform(lower, upper, (4000, len(lower)))
    near = x + 1e-4 * rng.normal(size=x.shape)
    a, b = np.asarray(values(dictionary, jnp.asarray(x))), np.asarray(values(dictionary, jnp.asarray(near)))
    slope = np.max(np.abs(a - b) / np.linalg.norm(x - near, axis=1, keepdims=True), axis=0)
    sup, lip = np.asarray(dictionary.supremum()), np.asarray(dictionary.lipschitz())
    assert sup.shape == lip.shape == a.shape[1:]
    assert np.all(np.max(np.abs(a), axis=0) <= sup * (1 + 1e-12))
    assert np.all(slope <= lip * (1 + 1e-6))
    # A bound a thousand times too large would pass the lines above.
    assert np.all(np.max(np.abs(a), axis=0) >= 0.2 * sup)
    assert np.all(slope >= 0.1 * lip)


def test_float32_and_transforms(case):
    """In float32 values agree to its precision; `jit`, `vmap` and reverse mode work; types are kept."""
    dictionary, lower, upper = case
    x = np.random.default_rng(2).uniform(lower, upper, (4000, len(lower)))  # as many as above: one program
    wide, narrow = (np.asarray(values(dictionary, jnp.asarray(x, dtype))) for dtype in (jnp.float64, jnp.float32))
    assert narrow.dtype == (jnp.complex64 if np.iscomplexobj(wide) else jnp.float32)
    np.testing.assert_allclose(narrow[:5], wide[:5], atol=3e-5, rtol=3e-5)
    assert np.all(np.isfinite(gradient(dictionary, jnp.asarray(x[0]))))


def test_hermite_orthonormal():
    """Gauss-Hermite quadrature is exact for products of two Hermite functions."""
    t, w = np.polynomial.hermite.hermgauss(80)
    c, s = 0.3, 0.7
    psi = np.asarray(jax.vmap(kv.Hermite(30, centre=c, scale=s))(jnp.asarray(c + s * t)[:, None]))
    gram = (psi.T * (w * np.exp(t**2) * s)) @ psi
    np.testing.assert_allclose(gram, np.eye(31), atol=2e-12)


def test_hermite_far_and_high():
    """Far out, where the Gaussian alone underflows, and at high degree."""
    n, x = 3000, 60.0  # exp(-x^2/2) = 1e-782, and the turning point is at 77
    value = float(kv.Hermite(n)(jnp.array([x]))[n])
    # The integral of h_n^2 over an oscillation: WKB, h_n ~ sqrt(2/pi) (2n+1-x^2)^(-1/4) cos(...)
    wkb = np.sqrt(2 / np.pi) * (2 * n + 1 - x**2) ** -0.25
    assert 1e-3 * wkb < abs(value) <= 1.01 * wkb
    narrow = float(kv.Hermite(n)(jnp.array([x], jnp.float32))[n])
    assert abs(narrow - value) < 1e-2 * wkb
    assert bool(jnp.all(kv.Hermite(10)(jnp.array([1e3])) == 0))


@pytest.mark.parametrize("index_set", ["total", "hyperbolic", "tensor"])
def test_legendre_orthonormal(index_set):
    t, w = np.polynomial.legendre.leggauss(12)
    grid = np.stack(np.meshgrid(t, t, indexing="ij"), -1).reshape(-1, 2)
    weights = np.outer(w, w).reshape(-1) / 4
    x = grid * [1.5, 0.5] + [0.5, -3.0]
    dictionary = kv.Legendre(6, [-1.0, -3.5], [2.0, -2.5], index_set=index_set)
    psi = np.asarray(jax.vmap(dictionary)(jnp.asarray(x)))
    np.testing.assert_allclose((psi.T * weights) @ psi, np.eye(psi.shape[1]), atol=3e-14)


def test_recurrences_match_scipy():
    t = np.linspace(-1, 1, 41)
    n = np.arange(61)
    psi = np.asarray(jax.vmap(kv.Legendre(60))(jnp.asarray(t)[:, None]))
    np.testing.assert_allclose(psi, np.sqrt(2 * n + 1) * sp.eval_legendre(n, t[:, None]), atol=1e-12)
    psi = np.asarray(jax.vmap(kv.Chebyshev(60))(jnp.asarray(t)[:, None]))
    expected = np.where(n == 0, 1, np.sqrt(2)) * np.cos(n * np.arccos(t)[:, None])
    np.testing.assert_allclose(psi, expected, atol=1e-11)
    norm = np.sqrt(np.sqrt(np.pi) * 2.0 ** n[:20] * sp.factorial(n[:20]))
    expected = sp.eval_hermite(n[:20], 3 * t[:, None]) * np.exp(-4.5 * t[:, None] ** 2) / norm
    np.testing.assert_allclose(np.asarray(jax.vmap(kv.Hermite(19))(jnp.asarray(3 * t)[:, None])), expected, atol=1e-13)


def test_outside_of_the_box_is_the_nearest_point():
    dictionary = kv.Legendre(5, [0.0, 0.0], [1.0, 2.0])
    np.testing.assert_array_equal(dictionary(jnp.array([3.0, 1.0])), dictionary(jnp.array([1.0, 1.0])))


def test_index_sets():
    """Sizes from counting, the constant first, and lower degrees as leading parts."""
    assert kv.index_set(3, 4).shape == (35, 3)  # binomial(3 + 4, 3)
    assert kv.index_set(2, 3, "tensor").shape == (16, 2)
    assert kv.index_set(2, 7, "hyperbolic").shape == (20, 2)  # sum of floor(8 / k), k = 1 .. 8
    assert len(kv.index_set(20, 2)) == 231
    for kind in ("total", "hyperbolic", "tensor"):
        small, large = kv.index_set(3, 3, kind), kv.index_set(3, 5, kind)
        np.testing.assert_array_equal(small, large[: len(small)])
        assert not small[0].any()
    pairs = np.asarray(kv.index_products([abs(K), range(4)], 3))
    assert {(k, n) for k, n in zip(K[pairs[:, 0]], pairs[:, 1], strict=True)} == {
        (k, n) for k in K for n in range(4) if (abs(k) + 1) * (n + 1) <= 4
    }


def test_monomials():
    x = np.array([0.3, -2.0])
    dictionary = kv.Monomials(2, 4)
    expected = [x[0] ** a * x[1] ** b for a, b in np.asarray(dictionary.indices)]
    np.testing.assert_allclose(np.asarray(dictionary(jnp.asarray(x))), expected, rtol=1e-15)
    assert dictionary.supremum() is None
    assert dictionary.lipschitz() is None
    shifted = kv.Monomials(1, 3, centre=1.0, scale=2.0)(jnp.array([5.0]))
    np.testing.assert_allclose(np.asarray(shifted), [1, 2, 4, 8])


def test_hats_interpolate(getkey):
    """1 at their own node, 0 at the others, and summing to 1: also across the end of the period."""
    hats = kv.Hats.random(11, key=getkey(), period=3.0)
    np.testing.assert_allclose(jax.vmap(hats)(hats.nodes[:, None]), np.eye(11), atol=1e-12)
    x = jnp.linspace(-4.0, 4.0, 101)[:, None]
    np.testing.assert_allclose(jnp.sum(jax.vmap(hats)(x), axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(hats)(x), jax.vmap(hats)(x + 3.0), atol=1e-12)


def test_kmeans_finds_the_clusters(getkey):
    """Well separated clusters are found, each mean exactly."""
    truth = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rng = np.random.default_rng(3)
    points = truth[:, None] + rng.normal(size=(4, 50, 2))
    centres = np.asarray(kv.kmeans(jnp.asarray(points.reshape(-1, 2)), 4, key=getkey(), block=33))
    nearest = np.argmin(np.linalg.norm(truth[:, None] - centres[None], axis=2), axis=1)
    np.testing.assert_allclose(centres[nearest], points.mean(axis=1), atol=1e-12)
    # As many centres as points: every point is one.
    few = jnp.asarray(points[0, :9])
    all_of_them = np.asarray(kv.kmeans(few, 9, key=getkey()))
    np.testing.assert_allclose(np.sort(all_of_them, axis=0), np.sort(few, axis=0), atol=1e-12)
    same = kv.kmeans(jnp.ones((5, 2), jnp.float32), 3, key=getkey())  # fewer distinct points than clusters
    np.testing.assert_array_equal(same, 1)


def test_rbf_from_kmeans(getkey, normal):
    x = normal((200, 2))
    dictionary = kv.RBF.from_kmeans(x, 10, key=getkey())
    points = np.asarray(x)
    d = np.mean(np.linalg.norm(points - np.mean(points, axis=0), axis=1))
    np.testing.assert_allclose(float(dictionary.scale), d, rtol=1e-12)
    expected = np.exp(-2 * np.linalg.norm(points[0] - np.asarray(dictionary.centres), axis=1) / d)
    np.testing.assert_allclose(np.asarray(dictionary(x[0])), expected, rtol=1e-12)


def test_product_without_indices_is_the_tensor_product():
    first, second = kv.Fourier([-1, 2]), kv.Hermite(2)
    product = kv.Product([first, second], [1, 1])
    expected = np.kron(first(jnp.array([0.4])), second(jnp.array([1.1])))
    np.testing.assert_allclose(np.asarray(product(jnp.array([0.4, 1.1]))), expected, rtol=1e-14)
    assert kv.Product([first, lambda x: x], [1, 1]).supremum() is None
    assert kv.Product([first, lambda x: x], [1, 1]).lipschitz() is None


def test_delay_fits_the_embedding_of_snapshots():
    trajectory = np.arange(12.0).reshape(6, 2)
    snapshots = kv.Snapshots.from_trajectory(trajectory, delays=3)
    dictionary = kv.Delay(kv.Concatenate([lambda x: x[:1], lambda x: x[1:] ** 2]), 3)
    z = trajectory[1:4]
    np.testing.assert_allclose(np.asarray(dictionary(snapshots.x[1])), np.stack([z[:, 0], z[:, 1] ** 2], 1).ravel())
    assert dictionary.supremum() is None
    assert dictionary.lipschitz() is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kv.Fourier([1, 1]), "frequencies"),
        (lambda: kv.Fourier([1, 2], period=0.0), "period"),
        (lambda: kv.Fourier([0.5]), "integers"),
        (lambda: kv.Hermite(-1), "degree"),
        (lambda: kv.Hermite(2, scale=0.0), "scale"),
        (lambda: kv.Hermite(2, 2, centre=[0.0, 1.0, 2.0]), "centre"),
        (lambda: kv.Legendre(2, 1.0, 0.0), "lower"),
        (lambda: kv.Monomials(0, 2), "dimension"),
        (lambda: kv.index_set(2, 2, cast(Any, "round")), "index_set"),
        (lambda: kv.RBF(CENTRES, cast(Any, "round")), "profile"),
        (lambda: kv.RBF(CENTRES[:1]), "scale"),
        (lambda: kv.RBF(CENTRES[0]), "centres"),
        (lambda: kv.kmeans(jnp.zeros((3, 1)), 4, key=jr.key(0)), "num"),
        (lambda: kv.Hats([0.0, 1.0]), "nodes"),
        (lambda: kv.Hats([0.0, 1.0, 2 * np.pi]), "distinct"),
        (lambda: kv.Delay(lambda x: x, 0), "num_delays"),
        (lambda: kv.Delay(lambda x: x, 2)(jnp.zeros(3)), "delayed"),
        (lambda: kv.Concatenate([]), "parts"),
        (lambda: kv.Product([kv.Hermite(1)], [1, 1]), "dimensions"),
        (lambda: kv.Product([kv.Hermite(1)], [1], [[2]]), "indices"),
        (lambda: kv.Product([kv.Hermite(1)], [1])(jnp.zeros(2)), "coordinates"),
    ],
)
def test_bad_input(make, message):
    # An unknown word is already refused by the run-time type check of the tests, which users do not have.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        make()
