"""Every refusal names the argument, and says what was expected and what came."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import ot_sns
import pytest


COST = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8)))
DENSE = ot_sns.DenseCost(COST)
A, B = jnp.full(6, 1 / 6, jnp.float64), jnp.full(8, 1 / 8, jnp.float64)
PROBLEM = ot_sns.EntropicOT(DENSE, A, B, epsilon=0.1)
CLOUD = jnp.zeros((3, 2), jnp.float64)
NAN = float("nan")

VALUES = {
    "negative a": (lambda: build(a=A.at[1].set(-0.25)), r"`a` must be nonnegative\. Got smallest = -0\.25"),
    "negative b": (lambda: build(b=B.at[1].set(-0.5)), r"`b` must be nonnegative\. Got smallest = -0\.5"),
    "NaN in a": (lambda: build(a=A.at[0].set(NAN)), "`a` must be finite, but has NaN or infinite entries"),
    "infinite b": (lambda: build(b=B.at[0].set(jnp.inf)), "`b` must be finite, but has NaN or infinite entries"),
    "no mass": (lambda: build(a=0 * A), "`a` must have positive total mass"),
    "masses": (
        lambda: build(a=A, b=2 * B),
        r"`a` and `b` must have the same total mass\. Got sum_of_a = 1, sum_of_b = 2\.",
    ),
    "zero epsilon": (lambda: build(epsilon=0.0), r"`epsilon` must be positive and finite\. Got epsilon = 0\."),
    "negative epsilon": (lambda: build(epsilon=-1.0), r"`epsilon` must be positive and finite\. Got epsilon = -1\."),
    "NaN epsilon": (lambda: build(epsilon=NAN), r"`epsilon` must be positive and finite\. Got epsilon = nan\."),
    "infinite epsilon": (
        lambda: build(epsilon=float("inf")),
        r"`epsilon` must be positive and finite\. Got epsilon = inf",
    ),
    "NaN cost": (
        lambda: ot_sns.DenseCost(COST.at[0, 0].set(NAN).at[1, 1].set(jnp.inf)),
        r"`cost` must be finite, but has NaN or infinite entries\. Got number_of_nonfinite_entries = 2",
    ),
    "NaN point": (
        lambda: ot_sns.PointCloud(CLOUD.at[0, 0].set(NAN), CLOUD),
        r"`x` must be finite, but has NaN or infinite entries\. Got number_of_nonfinite_entries = 1",
    ),
    "cost without scale": (
        lambda: ot_sns.rescale_cost(ot_sns.DenseCost(-COST)),
        "`geometry` must have a positive largest cost",
    ),
}

SHAPES = {
    "a": (lambda: build(a=jnp.ones(5)), r"`a` must have shape \(6,\) to match the geometry, got \(5,\)"),
    "b": (lambda: build(b=jnp.ones((8, 1))), r"`b` must have shape \(8,\) to match the geometry, got \(8, 1\)"),
    "epsilon": (lambda: build(epsilon=jnp.ones(3)), r"`epsilon` must be a scalar, got shape \(3,\)"),
    "cost vector": (
        lambda: ot_sns.DenseCost(jnp.ones(3)),
        r"`cost` must be a non-empty matrix of shape \(n, m\), got.*\(3,\)",
    ),
    "empty cost": (lambda: ot_sns.DenseCost(jnp.ones((0, 3))), r"`cost` must be a non-empty matrix.*\(0, 3\)"),
    "empty cloud": (lambda: ot_sns.PointCloud(CLOUD, CLOUD[:0]), r"`y` must be a non-empty cloud.*\(0, 2\)"),
    "flat cloud": (lambda: ot_sns.PointCloud(jnp.ones(3), CLOUD), r"`x` must be a non-empty cloud.*\(3,\)"),
    "dimension": (
        lambda: ot_sns.PointCloud(CLOUD, jnp.zeros((4, 3))),
        "`x` and `y` must have the same dimension, got points of dimension 2 and 3",
    ),
    "init": (
        lambda: ot_sns.solve(PROBLEM, init=(B, A)),
        r"`init` must hold potentials of shapes \(6,\) and \(8,\), got \(8,\) and \(6,\)",
    ),
    "init rank": (
        lambda: ot_sns.solve(PROBLEM, init=(A[:, None], B)),
        r"`init` must hold potentials.*\(6, 1\) and \(8,\)",
    ),
    "max_steps": (lambda: ot_sns.solve(PROBLEM, max_steps=0), r"`max_steps` must be at least 1.*\b0\b"),
    "tol": (lambda: ot_sns.SparseNewton(tol=0.0), r"`tol` must be positive, got 0\.0"),
    "NaN tol": (lambda: ot_sns.Sinkhorn(tol=NAN), "`tol` must be positive, got nan"),
    "hessian": (
        lambda: ot_sns.SparseNewton(hessian="full"),  # pyright: ignore[reportArgumentType]
        '`hessian` must be "auto", "dense" or "sparse", got \'full\'',
    ),
    "annealing": (lambda: ot_sns.SparseNewton(annealing_factor=1.0), r"`annealing_factor` must be above one, got 1\.0"),
    "room": (lambda: ot_sns.SparseNewton(nnz_per_row=0), "`nnz_per_row` must be positive, got 0"),
    "cg": (lambda: ot_sns.SparseNewton(max_cg_steps=-1), "`max_cg_steps` must be positive, got -1"),
    "warm-up": (lambda: ot_sns.SNS(num_warmup=0), "`num_warmup` must be positive, got 0"),
    "Newton": (lambda: ot_sns.SNS(num_newton=0), "`num_newton` must be positive, got 0"),
    "relaxation": (lambda: ot_sns.Sinkhorn(relaxation=2.0), r"`relaxation` must be in \[1, 2\), got 2\.0"),
}

TYPES = {
    "matrix for geometry": (
        lambda: ot_sns.EntropicOT(COST, epsilon=0.1),  # pyright: ignore[reportArgumentType]
        r"`geometry` must be an `ot_sns\.AbstractGeometry`, such as `ot_sns\.DenseCost\(C\)`",
    ),
    "complex cost": (
        lambda: ot_sns.DenseCost(COST.astype(complex)),
        "`cost` must hold real numbers, got dtype complex128",
    ),
    "half cost": (lambda: ot_sns.DenseCost(COST.astype(jnp.float16)), "`cost` must be float32 or float64, got float16"),
    "bfloat points": (
        lambda: ot_sns.PointCloud(CLOUD.astype(jnp.bfloat16), CLOUD),
        "`x` must be float32 or float64, got bfloat16",
    ),
    "mixed points": (
        lambda: ot_sns.PointCloud(CLOUD, CLOUD.astype(jnp.float32)),
        "`x` and `y` must have the same dtype, got float64 and float32",
    ),
    "mixed weights": (
        lambda: build(a=A.astype(jnp.float32)),
        "`a` must have the geometry's dtype float64, got float32",
    ),
    "complex weights": (lambda: build(b=B.astype(complex)), "`b` must hold real numbers, got dtype complex128"),
    "problem": (
        lambda: ot_sns.solve(DENSE),  # pyright: ignore[reportArgumentType]
        r"`problem` must be an `ot_sns\.EntropicOT`, got DenseCost",
    ),
    "solver class": (
        lambda: ot_sns.solve(PROBLEM, ot_sns.SparseNewton),  # pyright: ignore[reportArgumentType]
        r"`solver` must be an instance of an `ot_sns\.AbstractSolver`, got the class `SparseNewton` itself",
    ),
    "solver": (
        lambda: ot_sns.solve(PROBLEM, 1e-9),  # pyright: ignore[reportArgumentType]
        r"`solver` must be an instance of an `ot_sns\.AbstractSolver`, got float",
    ),
    "init": (
        lambda: ot_sns.solve(PROBLEM, init=A),  # pyright: ignore[reportArgumentType]
        r"`init` must be an `ot_sns\.Solution` or a pair of potentials",
    ),
    "complex init": (
        lambda: ot_sns.solve(PROBLEM, init=(A.astype(complex), B)),
        r"`init\[0\]` must hold real numbers, got dtype complex",
    ),
}


def build(a=A, b=B, epsilon: Any = 0.1):
    return ot_sns.EntropicOT(DENSE, a, b, epsilon=epsilon)


@pytest.mark.parametrize("case", VALUES)
def test_values(case):
    make, message = VALUES[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_and_settings(case, untyped):
    make, message = SHAPES[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("case", TYPES)
def test_types(case, untyped):
    make, message = TYPES[case]
    with pytest.raises(TypeError, match=message):
        make()


def test_integers_are_taken(untyped):
    geometry = ot_sns.DenseCost(jnp.arange(6).reshape(2, 3))
    assert geometry.dtype == jnp.float64
    problem = ot_sns.EntropicOT(geometry, jnp.array([3, 3]), jnp.array([1, 2, 3]), epsilon=1)
    assert problem.b.dtype == problem.epsilon.dtype == jnp.float64
    assert ot_sns.PointCloud(jnp.zeros((2, 1), int), jnp.ones((2, 1), int)).dtype == jnp.float64


def test_numpy_is_taken(untyped):
    arrays: list[Any] = [np.asarray(x) for x in (COST, A, B)]
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(arrays[0]), *arrays[1:], epsilon=0.1)
    assert all(isinstance(x, jnp.ndarray) for x in (problem.a, problem.b, problem.geometry.cost_matrix()))


TRACED = {
    "a": ((-A, B, 0.1, COST), "`a` must be nonnegative"),
    "NaN": ((A, B.at[0].set(NAN), 0.1, COST), "`b` must be finite"),
    "mass": ((A, 3 * B, 0.1, COST), "`a` and `b` must have the same total mass"),
    "epsilon": ((A, B, -0.1, COST), "`epsilon` must be positive and finite"),
    "cost": ((A, B, 0.1, COST.at[0, 0].set(NAN)), "`cost` must be finite"),
}


@eqx.filter_jit
def traced(a, b, epsilon, cost):
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(cost), a, b, epsilon=epsilon)
    return problem.a, problem.b, problem.epsilon, problem.geometry.cost_matrix()


@pytest.mark.parametrize("case", TRACED)
def test_values_under_jit(case):
    (a, b, epsilon, cost), message = TRACED[case]
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        traced(a, b, jnp.asarray(epsilon, jnp.float64), cost)


def test_rounding_of_the_masses_is_removed():
    # Weights that differ by rounding only are no error, and must not leave a residual.
    problem = build(a=A * (1 + 1e-9))
    assert float(jnp.sum(problem.a)) == pytest.approx(float(jnp.sum(problem.b)), rel=1e-15)
    with pytest.raises(ValueError, match="must have the same total mass"):
        build(a=A * (1 + 1e-7))


def test_a_geometry_that_is_not_finite():
    class Broken(ot_sns.AbstractGeometry):
        def cost_matrix(self):
            return COST.at[0, 0].set(jnp.inf)

        @property
        def shape(self):
            return 6, 8

        @property
        def dtype(self):
            return COST.dtype

    problem = ot_sns.EntropicOT(Broken(), A, B, epsilon=0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`problem\.geometry` has a cost that is not finite"):
        ot_sns.solve(problem, ot_sns.Sinkhorn(tol=1e-13), max_steps=3)
