"""The named problems: shapes, weights, seeds and reference numbers."""

import gzip
import struct

import numpy as np
import pytest
from ot_sns import problems


SMALL = ["LAP-500", "DENS1D-500", "DIGITS-L2", "DIGITS-L1", "GAUSS2D-500"]


def semidual_newton(named, tol=1e-10):
    """Solve by dense NumPy: Newton on the semi-dual, annealed, safeguarded by Sinkhorn. Independent of the package."""
    cost, a, b = named.cost_matrix(), named.a, named.b

    def plan_of(f, epsilon):
        scaled = (f[:, None] - cost) / epsilon
        weights = np.exp(scaled - scaled.max(0))
        return weights * (b / weights.sum(0))

    def error(f, epsilon):
        return np.abs(a - plan_of(f, epsilon).sum(1)).sum()

    f = np.zeros(len(a))
    stages = [named.epsilon * 4.0**k for k in range(5, -1, -1)]
    for epsilon in stages:
        wanted = tol if epsilon == stages[-1] else 1e-2
        for _ in range(200):
            plan = plan_of(f, epsilon)
            rows = plan.sum(1)
            gap = a - rows
            if np.abs(gap).sum() <= wanted:
                break
            newton = f
            if ((gap**2) / np.maximum(rows, 1e-300)).sum() < 0.3:
                schur = np.diag(rows) - (plan / b) @ plan.T
                schur += 1e-14 * np.eye(len(a)) + np.full_like(schur, 1 / len(a) ** 2)  # the gauge
                step = epsilon * np.linalg.solve(schur, gap)
                sizes = (1.0, 0.5, 0.25, 0.1)
                newton = min((f + s * step for s in sizes), key=lambda f, epsilon=epsilon: error(f, epsilon))
            sinkhorn = f + epsilon * np.log(a / np.maximum(rows, 1e-300))
            f = newton if newton is not f and error(newton, epsilon) < np.abs(gap).sum() else sinkhorn
    return plan_of(f, named.epsilon)


@pytest.mark.parametrize("name", ["LAP-500", "DENS1D-500", "GAUSS2D-500"])
def test_reference_costs(name):
    named = problems.standard()[name]()
    plan = semidual_newton(named)
    assert np.abs(plan.sum(1) - named.a).sum() <= 1e-9
    assert abs((named.cost * plan).sum() - named.known["linear_cost"]) < 1e-9


@pytest.mark.parametrize("name", SMALL)
def test_standard_problems_are_well_posed(name):
    named = problems.standard()[name]()
    assert named.name == name
    assert named.cost is not None
    assert named.cost.shape == named.shape
    for weights in (named.a, named.b):
        assert weights.dtype == np.float64
        assert np.all(weights > 0)
        assert abs(weights.sum() - 1) < 1e-12
    assert named.cost.min() >= 0
    assert named.cost.max() <= 1
    linear_cost, lp_value = named.known["linear_cost"], named.known["lp_value"]
    # the entropic plan costs more than the optimal one, by at most ε times the smaller entropy
    entropy = min(-(w * np.log(w)).sum() for w in (named.a, named.b))
    assert 0 <= linear_cost - lp_value <= named.epsilon * entropy


def test_generators_are_deterministic():
    assert np.array_equal(problems.lap(20).cost_matrix(), problems.lap(20).cost_matrix())
    assert np.allclose(problems.lap(500).cost_matrix()[0, :3], [0.63696169, 0.26978671, 0.04097352])
    first, again, other = (problems.color_transfer(30, seed).cost_matrix() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_names_tell_the_problems_apart():
    names = [make().name for make in (lambda: problems.gauss2d(7), lambda: problems.gauss2d(7, 0.01))]
    assert names == ["GAUSS2D-7", "GAUSS2D-7-eps0.01"]
    assert problems.digit_pair(3, 4, size=8).name == "DIGITS-L2-3-4-8"
    assert problems.digit_pair(3, 4, size=8).known == {}
    assert problems.lap(7).known == {}


def test_digit_pair_has_its_images():
    named = problems.digit_pair(2, 5, size=12, metric="l1")
    assert named.images is not None
    assert [image.shape for image in named.images] == [(12, 12)] * 2
    assert named.shape == (144, 144)
    with pytest.raises((ValueError, TypeError), match="metric"):  # TypeError: where types are checked at run time
        problems.digit_pair(0, 1, metric="l3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`background`"):
        problems.digit_pair(0, 1, background=0.0)


def test_color_transfer():
    named = problems.color_transfer(50, seed=3)
    assert named.x is not None
    assert named.y is not None
    assert named.images is not None
    assert named.x.shape == named.y.shape == (50, 3)
    assert all(image.shape == (427, 640, 3) and image.dtype == np.uint8 for image in named.images)
    assert min(named.x.min(), named.y.min()) >= 0
    assert max(named.x.max(), named.y.max()) <= 1
    cost = named.cost_matrix()
    assert np.allclose(cost, ((named.x[:, None] - named.y[None]) ** 2).sum(-1))
    assert named.epsilon == pytest.approx(cost.max() / 1200)
    with pytest.raises(ValueError, match="`num_points`"):
        problems.color_transfer(0)


def test_a_record_has_a_matrix_or_points():
    weights = np.full(2, 0.5)
    with pytest.raises(ValueError, match="`cost` or both"):
        problems.NamedProblem("neither", weights, weights, 1.0)
    with pytest.raises(ValueError, match="`cost` or both"):
        problems.NamedProblem("both", weights, weights, 1.0, cost=np.eye(2), x=np.eye(2), y=np.eye(2))


@pytest.mark.parametrize("make", [lambda: problems.lap(6), lambda: problems.color_transfer(6)])
def test_problem_builds_the_package_problem(make):
    import ot_sns

    named = make()
    problem = named.problem()
    assert isinstance(problem, ot_sns.EntropicOT)
    assert np.allclose(problem.geometry.cost_matrix(), named.cost_matrix(), atol=1e-6)
    assert np.allclose(problem.a, named.a)
    assert float(problem.epsilon) == pytest.approx(named.epsilon)


def idx_file(images):
    return struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes()


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_pair_reads_idx_files(tmp_path, compress):
    images = np.random.default_rng(0).integers(0, 256, size=(3, 5, 4), dtype=np.uint8)
    path = tmp_path / "images-idx3-ubyte"
    raw = idx_file(images)
    path.write_bytes(gzip.compress(raw) if compress else raw)
    named = problems.mnist_pair(path, 0, 2)
    assert named.images is not None
    assert np.array_equal(np.rint(named.images[1] * 255), images[2])
    mixed = 0.99 * images[0] / images[0].sum() + 0.01 / 20
    assert np.allclose(named.a, mixed.ravel())
    # the atom after (0, 0) is (0, 1): pixels are listed row by row
    assert named.cost_matrix()[0, 1] == pytest.approx(1 / (4**2 + 3**2))


def test_mnist_pair_rejects_other_files(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(20))
    with pytest.raises(ValueError, match="not an idx file of images"):
        problems.mnist_pair(path, 0, 1)
    images = np.zeros((2, 3, 3), np.uint8)
    path.write_bytes(idx_file(images)[:-1])
    with pytest.raises(ValueError, match="announces 2 images"):
        problems.mnist_pair(path, 0, 1)
    path.write_bytes(idx_file(images))
    with pytest.raises(ValueError, match="no image 2"):
        problems.mnist_pair(path, 0, 2)
    with pytest.raises(ValueError, match="black"):
        problems.mnist_pair(path, 0, 1)


def test_missing_demo_packages_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"ot-sns\[demo\]"):
        problems.digits_l2()
    with pytest.raises(ImportError, match=r"ot-sns\[demo\]"):
        problems.color_transfer(5)
