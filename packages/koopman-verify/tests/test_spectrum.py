import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from koopman_verify import (
    RESULTS,
    Factor,
    Fourier,
    Hats,
    Monomials,
    Snapshots,
    edmd,
    factor,
    polar_grid,
    pseudospectrum,
    rectangle_grid,
    verified_spectrum,
)


GOLDEN = (5**0.5 - 1) / 2


def rotation_of_hats(num, angle, seed=0, snapshots=3000):
    nodes = np.random.default_rng(seed).uniform(0, 2 * np.pi, num)
    x = 2 * np.pi * np.arange(snapshots) / snapshots
    return factor(Hats(nodes), Snapshots(x, (x + angle) % (2 * np.pi), kind="quadrature"))


def characters(n, angle=1.0, num=200, kind="quadrature"):
    x = 2 * np.pi * np.arange(num) / num
    return factor(Fourier(range(-n, n + 1)), Snapshots(x, x + angle, kind=kind))


def contraction(rate=0.5):
    x = np.linspace(-1, 1, 200)
    return factor(Monomials(1, 4), Snapshots(x, rate * x))


@pytest.mark.parametrize("num", [40, 80])
@pytest.mark.parametrize("measure_preserving", [False, True])
def test_three_roots_and_nothing_else(num, measure_preserving):
    f = rotation_of_hats(num, 2 * np.pi / 3)
    roots = jnp.asarray(np.exp(2j * np.pi * np.arange(3) / 3))
    nearest = lambda z: jnp.min(jnp.abs(z[:, None] - roots[None]), axis=1)
    assert jnp.max(nearest(edmd(f).eigenvalues)) >= 0.9  # what EDMD alone would return
    spectrum = verified_spectrum(f, polar_grid(480, half=False), measure_preserving=measure_preserving)
    assert len(spectrum.points) == 3
    assert jnp.max(nearest(spectrum.points)) < 1e-12
    assert jnp.max(jnp.min(jnp.abs(spectrum.points[None] - roots[:, None]), axis=1)) < 1e-12
    assert spectrum.error < 0.05
    assert jnp.all(spectrum.bounds <= spectrum.error)
    assert spectrum.result == RESULTS.successful
    assert spectrum.kind == "quadrature"


def test_no_pollution_from_a_grid_of_the_disc():
    f = rotation_of_hats(40, 2 * np.pi / 3)
    roots = jnp.asarray(np.exp(2j * np.pi * np.arange(3) / 3))
    spectrum = verified_spectrum(f, rectangle_grid(-1.2 - 1.2j, 1.2 + 1.2j, 0.1))
    distance = jnp.min(jnp.abs(spectrum.points[:, None] - roots[None]), axis=1)
    assert jnp.all(distance <= spectrum.bounds)


def test_nothing_of_the_circle_is_missed_at_kappa_one():
    f = rotation_of_hats(80, 2 * np.pi * GOLDEN)
    grid = polar_grid(480, half=False)
    spectrum = verified_spectrum(f, grid)
    circle = polar_grid(4000, half=False)
    missed = jnp.max(jnp.min(jnp.abs(circle[:, None] - spectrum.points[None]), axis=1))
    # Each grid point has a selected one within its own distance, which is at most 1.4 times the error here.
    assert missed <= jnp.max(spectrum.distances) + np.pi / 480
    assert jnp.all(
        jnp.min(jnp.abs(grid[:, None] - spectrum.points[None]), axis=1)
        <= jnp.where(spectrum.distances < 1, spectrum.distances, jnp.inf)
    )
    fewer = spectrum.with_kappa(5)
    assert fewer.error <= spectrum.error
    assert len(fewer.points) < len(spectrum.points)
    # The guarantee is that of kappa = 1 only, which is why it is the default.
    assert jnp.max(jnp.min(jnp.abs(circle[:, None] - fewer.points[None]), axis=1)) > missed
    direct = verified_spectrum(f, grid, 5)
    assert jnp.array_equal(direct.selected, fewer.selected)
    assert direct.error == fewer.error
    assert fewer.kappa == 5


def by_definition(grid, d, kappa):
    selected = np.zeros(len(grid), bool)
    for z, radius in zip(grid, d, strict=True):
        if radius < 1:
            reach = np.abs(grid - z) <= kappa * radius
            selected |= reach & (d == d[reach].min())
    return selected


def test_selection_by_its_definition(monkeypatch):
    import koopman_verify._spectra.spectrum as module

    f = characters(2)
    grid = rectangle_grid(-1.3 - 1.3j, 1.3 + 1.3j, 0.26)
    spectrum = verified_spectrum(f, grid)
    expected = np.asarray(pseudospectrum(f, grid)) + np.asarray(f.rounding(grid))
    np.testing.assert_allclose(spectrum.distances, expected, atol=1e-15)
    monkeypatch.setattr(module, "_AT_ONCE", 7 * 121)
    by_blocks = jax.jit(lambda *arrays: module._local_minimisers(*arrays))
    for kappa in (0.5, 1.0, 5.0):
        chosen = spectrum.with_kappa(kappa)
        expected = by_definition(np.asarray(grid), np.asarray(spectrum.distances), kappa)
        assert np.array_equal(chosen.selected, expected)
        assert np.array_equal(by_blocks(grid, spectrum.distances, jnp.asarray(kappa)), expected)
        assert chosen.error == np.max(np.asarray(chosen.bounds))


def test_float32_and_jit():
    x = jnp.asarray(2 * np.pi * np.arange(200) / 200, jnp.float32)
    f = factor(Fourier(range(-2, 3)), Snapshots(x, x + jnp.float32(1), kind="quadrature"))
    grid = polar_grid(80, half=False).astype(jnp.complex64)
    spectrum = verified_spectrum(f, grid)
    assert spectrum.distances.dtype == spectrum.error.dtype == jnp.float32
    assert jnp.all(spectrum.rounding > 0)
    exact = np.exp(1j * np.arange(-2, 3))
    assert np.all(np.min(np.abs(np.asarray(spectrum.points)[:, None] - exact), axis=1) <= np.asarray(spectrum.bounds))

    @eqx.filter_jit
    def run(f):
        inside = verified_spectrum(f, grid)
        with pytest.raises(TypeError, match="use `selected`"):
            _ = inside.points
        return inside.selected, inside.error

    selected, error = run(f)
    assert jnp.array_equal(selected, spectrum.selected)
    assert jnp.allclose(error, spectrum.error, atol=1e-6)


def test_a_dissipative_map_is_not_measure_preserving():
    f = contraction()
    grid = rectangle_grid(0, 1 + 0j, 0.125)
    spectrum = verified_spectrum(f, grid, measure_preserving=True, throw=False)
    assert spectrum.result == RESULTS.not_measure_preserving
    # Zero is within the least singular value of K, which is below the least eigenvalue, 1/16.
    assert 1 - 1 / 16 < spectrum.violation < 1
    with pytest.raises(eqx.EquinoxRuntimeError, match="the data contradict it"):
        verified_spectrum(f, grid, measure_preserving=True)
    # The grid alone need not show it.
    assert verified_spectrum(f, polar_grid(8), measure_preserving=True, throw=False).violation > 0.9
    assert verified_spectrum(f, grid).result == RESULTS.successful


def test_an_isometry_passes_the_audit():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 2 * np.pi, 4000)
    f = factor(Hats(rng.uniform(0, 2 * np.pi, 40)), Snapshots(x, (x + 1.0) % (2 * np.pi)))
    grid = polar_grid(60, [0.6, 0.8, 1.0])
    spectrum = verified_spectrum(f, grid, measure_preserving=True)
    assert spectrum.kind == "training"
    assert jnp.allclose(spectrum.isometry_defect, f.isometry_defect)
    assert jnp.all(spectrum.distances >= jnp.abs(1 - jnp.abs(grid)))


def test_too_few_snapshots_are_refused():
    f = characters(10, num=60, kind="iid")
    spectrum = verified_spectrum(f, polar_grid(20), throw=False)
    assert spectrum.result == RESULTS.uncertifiable
    assert spectrum.kind == "training"
    with pytest.raises(eqx.EquinoxRuntimeError, match="fewer than ten snapshots"):
        verified_spectrum(f, polar_grid(20))
    assert verified_spectrum(characters(10, num=60), polar_grid(20)).result == RESULTS.successful


def test_nothing_found():
    f = characters(2)
    far = jnp.array([4.0 + 0j, 5.0])
    spectrum = verified_spectrum(f, far, throw=False)
    assert spectrum.result == RESULTS.nothing_found
    assert len(spectrum.points) == 0
    assert spectrum.error == jnp.inf
    with pytest.raises(eqx.EquinoxRuntimeError, match="No point of the grid"):
        verified_spectrum(f, far)


def test_what_is_not_finite_is_no_success():
    f = characters(2)
    broken = eqx.tree_at(lambda f: f.B, f, f.B.at[0, 0].set(jnp.nan))
    spectrum = verified_spectrum(broken, polar_grid(5), throw=False)
    assert spectrum.result == RESULTS.nonfinite


def test_normal_operator_away_from_the_circle():
    # K normal and not an isometry: h is the distance from the nearest eigenvalue all the same.
    values = np.array([0.9, 0.3 + 0.4j, -0.5, 0.1j])
    eye = jnp.eye(4, dtype=complex)
    f = Factor(
        dictionary=lambda x: x,
        A=jnp.asarray(np.diag(values)),
        B=jnp.zeros((4, 4), complex),
        basis=eye,
        R11=eye,
        cond=jnp.ones(()),
        num_snapshots=100,
        kind="iid",
    )
    spectrum = verified_spectrum(f, rectangle_grid(-1 - 1j, 1 + 1j, 0.1))
    assert len(spectrum.points) == 4
    assert spectrum.error < 1e-12


def test_grids():
    half = polar_grid(5, [0.5, 1.0])
    assert half.shape == (10,)
    assert half[4] == -0.5
    assert jnp.allclose(polar_grid(4, half=False), jnp.array([1, 1j, -1, -1j]), atol=1e-15)
    grid = rectangle_grid(-0.5, 1 + 1j, 0.02)
    assert grid.shape == (76 * 51,)
    assert len(np.unique(np.round(np.asarray(grid), 9))) == len(grid)
    assert jnp.max(jnp.abs(jnp.diff(grid))) < 0.02 + 1e-12  # neighbours in a row, which warm starts like
    assert jnp.max(grid.real) == 1
    assert jnp.max(grid.imag) == 1


def test_prints_its_points():
    text = str(verified_spectrum(characters(1), polar_grid(16, half=False)))
    assert "E = " in text
    assert "+1.000000" in text


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda f: verified_spectrum(f, jnp.ones((2, 2), complex)), r"`grid` must hold complex numbers, \[k\]"),
        (lambda f: verified_spectrum(f, jnp.zeros(0, complex)), "`grid`"),
        (lambda f: verified_spectrum(f, jnp.ones(2, complex), 0.0), "`kappa` must be a positive number; got 0.0"),
        (lambda f: verified_spectrum(f, jnp.array([jnp.inf + 0j])), "`grid` must be finite"),
        (lambda _: polar_grid(1), "`num_angles`"),
        (lambda _: polar_grid(9, -1.0), "`radii` not negative"),
        (lambda _: rectangle_grid(1, 0, 0.1), "`upper` must be above"),
        (lambda _: rectangle_grid(0, 1, 0.0), "`spacing` positive"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(characters(1))
