from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from implicit_core.operators import AbstractOperator
from jaxtyping import Array, Bool, Float, Int, Real

from ._graph_tuple import _node_graphs, gather


NormKind: TypeAlias = Literal["max", "sum"]

_MAX_STEPS = 10_000


class GraphOperator(AbstractOperator):
    r"""The operator $I - N^m$ of each head $m$ of a contracting map, on arrays of nodes by heads.

    $N^m$ has the entry `values[k, m]` in row `rows[k]` and column `cols[k]`. Nothing larger than edges by heads is held.

    **Arguments:**

    - `values`: the entries of $N$, one an edge and head.
    - `rows`, `cols`: nodes, one an edge.
    - `n_node`: how many nodes each graph has. $N$ has no entry between two graphs.
    - `num_nodes`: of all graphs together.
    - `tags`: Lineax tags.
    """

    values: Float[Array, "edges heads"]
    rows: Int[Array, " edges"]
    cols: Int[Array, " edges"]
    n_node: Int[Array, " graphs"]
    num_nodes: int = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True, default=frozenset())

    def apply(self, vector: Float[Array, "nodes heads"]) -> Float[Array, "nodes heads"]:
        """Return `N v`."""
        return jax.ops.segment_sum(self.values * gather(vector, self.cols), self.rows, self.num_nodes)

    def mv(self, vector: Float[Array, "nodes heads"]) -> Float[Array, "nodes heads"]:
        """Return `v - N v`."""
        return vector - self.apply(vector)

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return the dense matrix, which has (nodes times heads) squared entries: for tests of small graphs."""
        n, heads = self.num_nodes, self.values.shape[1]
        head = jnp.arange(heads)[None, :]
        matrix = jnp.zeros((n, heads, n, heads), self.values.dtype)
        matrix = matrix.at[self.rows[:, None], head, self.cols[:, None], head].add(-self.values, mode="drop")
        return matrix.reshape(n * heads, n * heads) + jnp.eye(n * heads, dtype=self.values.dtype)

    def transpose(self) -> "GraphOperator":
        """Return the transpose, which shares the values."""
        return GraphOperator(
            values=self.values,
            rows=self.cols,
            cols=self.rows,
            n_node=self.n_node,
            num_nodes=self.num_nodes,
            tags=lx.transpose_tags(self.tags),
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of what the operator acts on."""
        return jax.ShapeDtypeStruct((self.num_nodes, self.values.shape[1]), self.values.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as `in_structure`."""
        return self.in_structure()

    def index(self) -> Int[Array, " nodes"]:
        """Return for every node the number of its graph."""
        return _node_graphs(self.n_node, self.num_nodes)

    def rate(self) -> Float[Array, "graphs heads"]:
        """Return the maximum norm of $N$, the largest sum of moduli in a row, for each graph and head."""
        sums = jax.ops.segment_sum(jnp.abs(self.values), self.rows, self.num_nodes)
        return block_norm(sums, self.index(), self.n_node.shape[0], "max")


def block_norm(
    x: Float[Array, "nodes heads"], index: Int[Array, " nodes"], size: int, kind: NormKind
) -> Float[Array, "graphs heads"]:
    """Return the maximum or the sum of the moduli over the nodes of each graph, for each head."""
    if kind == "sum":
        return jax.ops.segment_sum(jnp.abs(x), index, size)
    return jnp.maximum(jax.ops.segment_max(jnp.abs(x), index, size), 0)  # zero for a graph without nodes


class Picard(eqx.Module):
    r"""Solve a contracting map by its own iteration, until the error is proved to be small.

    Each graph and head stops by itself, at $\rho/(1-\rho)\,|h_k - h_{k-1}| \le \mathtt{rtol}\,|h_k|$, where $\rho$ is the
    Lipschitz constant of the map of that graph and head. The left side bounds the error (Banach). So an answer does not
    depend on what else is in the batch. Norms are maxima over the nodes of a graph; sums in the derivative, whose
    operator is the transpose.

    **Arguments:**

    - `rtol`: relative error. `None` is `eps ** 0.75`, about 2e-12 in float64 and 6e-6 in float32, or what rounding
        allows if that is more: `16 eps / (1 - rho)`, times up to the largest number of edges in a row.
    - `max_steps`: a limit on the steps. It takes about `log(rtol) / log(rho)` of them, so there is no need for one below
        the default; and it is not applied to the derivative.

    **Raises:**

    `ValueError` for a negative `rtol` or `max_steps`.

    !!! Example

        ```python
        ContractingMap(0.9).solve(logits, bias, graph, Picard(rtol=1e-4))
        ```
    """

    rtol: Real[Array, ""] | float | None = None
    max_steps: int = eqx.field(default=_MAX_STEPS, static=True)

    def __check_init__(self):
        if isinstance(self.rtol, int | float) and not self.rtol >= 0:
            raise ValueError(f"`rtol` must be non-negative; got {self.rtol}")
        if self.max_steps < 0:
            raise ValueError(f"`max_steps` must be non-negative; got {self.max_steps}")


class PicardRun(eqx.Module):
    """How the iteration ended, for each graph and head."""

    value: Float[Array, "nodes heads"]
    error: Float[Array, "graphs heads"]  # bound
    num_steps: Int[Array, "graphs heads"]
    going: Bool[Array, "graphs heads"]  # at the end: the step limit came first
    stalled: Bool[Array, "graphs heads"]  # by rounding
    goal: Float[Array, "graphs heads"]  # what the change must be down to
    deadline: Int[Array, "graphs heads"]  # by this step
    count: Int[Array, ""]


def picard(
    step: Callable[[Array], Array],
    x: Float[Array, "nodes heads"],
    operator: GraphOperator,
    rate: Float[Array, "graphs heads"],
    kind: NormKind,
    tol: Float[Array, "graphs heads"],
    slack: Float[Array, "graphs heads"],
    max_steps: int,
) -> PicardRun:
    """Iterate `step`, which contracts each graph and head by `rate` in the norm `kind`, from `x`, to a relative error of
    `tol`; or, if rounding stops it before, `tol * slack`.
    """
    index, size = operator.index(), operator.n_node.shape[0]
    contracts = rate < 1
    factor = jnp.where(contracts, rate / jnp.where(contracts, 1 - rate, 1), jnp.inf)
    # In so many steps a contraction halves the change; where it does not, what is left is rounding.
    halving = jnp.where(contracts & (rate > 0), jnp.log(2.0) / -jnp.log(jnp.where(rate > 0, rate, 0.5)), 1)
    patience = 1 + jnp.ceil(jnp.clip(halving, 1, _MAX_STEPS)).astype(jnp.int32)

    def body(run: PicardRun) -> PicardRun:
        x = jnp.where(gather(run.going, index), step(run.value), run.value)
        change = block_norm(x - run.value, index, size, kind)
        # At a rate of zero one step is exact, and infinity times no change is no error.
        error = jnp.where(change > 0, factor * change, jnp.where(jnp.isnan(change), jnp.inf, 0))
        wanted = tol * block_norm(x, index, size, kind)
        met = error <= wanted
        on_time = change <= run.goal
        halted = run.going & ~met & (jnp.isnan(change) | (~on_time & (run.count >= run.deadline)))
        return PicardRun(
            value=x,
            error=jnp.where(run.going, error, run.error),
            num_steps=run.num_steps + run.going.astype(jnp.int32),
            going=run.going & ~met & ~halted,
            stalled=run.stalled | (halted & ~(error <= slack * wanted)),
            goal=jnp.where(on_time, change / 2, run.goal),
            deadline=jnp.where(on_time, run.count + patience, run.deadline),
            count=run.count + 1,
        )

    zero, none = jnp.zeros((), jnp.int32), jnp.zeros(rate.shape, jnp.int32)
    infinite = jnp.full(rate.shape, jnp.inf, rate.dtype)
    init = PicardRun(x, infinite, none, contracts, none > 0, infinite, none, zero)
    return jax.lax.while_loop(lambda run: jnp.any(run.going) & (run.count < max_steps), body, init)


def tolerance(operator: GraphOperator, rate: Float[Array, "graphs heads"], rtol: Any) -> tuple[Array, Array]:
    """Return the relative error to be reached, for each graph and head, and `slack`: see `picard`."""
    eps = float(jnp.finfo(rate.dtype).eps)
    rounding = 16 * eps / jnp.where(rate < 1, 1 - rate, 1)
    if rtol is not None:
        return jnp.full(rate.shape, rtol, rate.dtype), jnp.ones(rate.shape, rate.dtype)
    # The rounding of a sum of many terms is larger; but it seldom shows, so that it is not allowed for from the start.
    degree = jax.ops.segment_sum(jnp.ones(operator.rows.shape, rate.dtype), operator.rows, operator.num_nodes)
    most = block_norm(degree[:, None], operator.index(), rate.shape[0], "max")
    return jnp.maximum(eps**0.75, rounding), jnp.broadcast_to(jnp.maximum(most, 1), rate.shape)


class DenseLU(lx.AbstractLinearSolver[Any]):
    r"""Factorise the dense matrix of each graph and head: a Lineax solver for contracting maps on small graphs.

    Memory for (graphs x heads x `max_nodes`$^2$) numbers. In exact arithmetic a graph of any $\gamma < 1$ takes the same
    time, so this is for $\gamma$ near one.

    **Arguments:**

    - `max_nodes`: the number of nodes of the largest graph, static. In a graph with more, those beyond are taken to be
        without edges; [`fixedpoint_eq.graph.ContractingMap.solve`][] then iterates from there, so that its answer is
        right in any case.

    **Raises:**

    `ValueError` if `max_nodes` is not positive, `TypeError` if the operator is not one of a contracting map.

    !!! Example

        ```python
        ContractingMap(0.999).solve(logits, bias, graph, DenseLU(50))
        ```
    """

    max_nodes: int = eqx.field(static=True)

    def __check_init__(self):
        if self.max_nodes < 1:
            raise ValueError(f"`max_nodes` must be positive; got {self.max_nodes}")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Factorise. See `lineax.AbstractLinearSolver.init`."""
        del options
        if not isinstance(operator, GraphOperator):
            raise TypeError(f"`DenseLU` needs the operator of a contracting map; got {type(operator).__name__}")
        index, local = self._places(operator)
        size, heads = operator.n_node.shape[0], operator.values.shape[1]
        at = gather(index, operator.rows)
        place = lambda nodes: jnp.where(nodes < operator.num_nodes, gather(local, nodes), self.max_nodes)
        # Entries beyond the square are dropped, on both sides: a row without entries is one of the identity.
        matrix = jnp.zeros((size, self.max_nodes, self.max_nodes, heads), operator.values.dtype)
        matrix = matrix.at[at, place(operator.rows), place(operator.cols)].add(-operator.values, mode="drop")
        matrix = jnp.moveaxis(matrix, -1, 1) + jnp.eye(self.max_nodes, dtype=matrix.dtype)[None, None]
        factors = jax.vmap(jax.vmap(jax.scipy.linalg.lu_factor))(matrix)
        return operator, factors, eqxi.Static(False)

    def _places(self, operator: GraphOperator) -> tuple[Array, Array]:
        index = operator.index()
        first = jnp.cumsum(operator.n_node) - operator.n_node
        return index, jnp.arange(operator.num_nodes, dtype=first.dtype) - first[index]

    def compute(self, state: Any, vector: Array, options: dict[str, Any]) -> tuple[Array, lx.RESULTS, dict[str, Any]]:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        del options
        operator, factors, transposed = state
        index, local = self._places(operator)
        size, heads = operator.n_node.shape[0], operator.values.shape[1]
        blocks = jnp.zeros((size, self.max_nodes, heads), vector.dtype).at[index, local].set(vector, mode="drop")
        solve = lambda factors, b: jax.scipy.linalg.lu_solve(factors, b, trans=1 if transposed.value else 0)
        out = jax.vmap(jax.vmap(solve))(factors, jnp.moveaxis(blocks, -1, 1))
        out = jnp.moveaxis(out, 1, -1)[index, jnp.minimum(local, self.max_nodes - 1)]
        return jnp.where((local < self.max_nodes)[:, None], out, vector), lx.RESULTS.successful, {}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Share the factors with the transpose. See `lineax.AbstractLinearSolver.transpose`."""
        operator, factors, transposed = state
        return (operator.transpose(), factors, eqxi.Static(not transposed.value)), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the same: contracting maps are real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return `True`: a contracting map has one fixed point."""
        return True


class Certified(lx.AbstractLinearSolver[Any]):
    """Solve `(N - I) x = b`, the linear system of a derivative, with the same certificate as the map itself.

    The operator that it is given is the Jacobian of the residual, of which nothing is known; so `operator`, the same up
    to sign, comes with the solver.
    """

    operator: GraphOperator
    rate: Float[Array, "graphs heads"]
    rtol: Real[Array, ""] | float | None
    inner: lx.AbstractLinearSolver | None

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Prepare the inner solver. See `lineax.AbstractLinearSolver.init`."""
        del operator, options
        inner = None if self.inner is None else self.inner.init(self.operator, {})
        return self.operator, inner, eqxi.Static("max")

    def compute(self, state: Any, vector: Array, options: dict[str, Any]) -> tuple[Array, lx.RESULTS, dict[str, Any]]:
        """Solve against `vector`. See `lineax.AbstractLinearSolver.compute`."""
        del options
        operator, inner, kind = state
        b = -vector
        x = b if self.inner is None else self.inner.compute(inner, b, {})[0]
        x = jnp.where(jnp.isfinite(x), x, b)
        tol, slack = tolerance(operator, self.rate, self.rtol)
        run = picard(lambda x: operator.apply(x) + b, x, operator, self.rate, kind.value, tol, slack, _MAX_STEPS)
        result = lx.RESULTS.where(jnp.any(run.going), lx.RESULTS.max_steps_reached, lx.RESULTS.successful)
        sound = jnp.all(jnp.isfinite(run.value)) & jnp.all(self.rate < 1)
        return run.value, lx.RESULTS.where(sound, result, lx.RESULTS.singular), {}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Transpose the operator; the sum of moduli is the norm dual to their maximum."""
        operator, inner, kind = state
        if self.inner is not None:
            inner, _ = self.inner.transpose(inner, {})
        return (operator.transpose(), inner, eqxi.Static("sum" if kind.value == "max" else "max")), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the same: contracting maps are real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return `True`: a contracting map has one fixed point."""
        return True
