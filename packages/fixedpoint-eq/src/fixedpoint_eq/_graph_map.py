from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from implicit_core.certify import Certificate
from implicit_core.implicit import fixed_point
from jaxtyping import Array, Float, Real

from ._graph_solve import Certified, GraphOperator, Picard, PicardRun, picard, tolerance
from ._graph_tuple import GraphsTuple, gather, segment_softmax
from ._results import RESULTS


Normalisation: TypeAlias = Literal["outdegree", "softmax", "sigmoid"]


class GraphSolution(eqx.Module):
    """The fixed point of a contracting map.

    **Attributes:**

    - `value`: the fixed point, nodes by heads.
    - `result`: how each graph's solve ended, [`fixedpoint_eq.RESULTS`][] with an axis of graphs.
    - `stats`: `num_steps` and `rate`, the Lipschitz constant of the map, each graphs by heads.
    - `certificate`: a bound on the largest error of a node, graphs by heads.
    """

    value: Float[Array, "nodes heads"]
    result: RESULTS
    stats: dict[str, Any]
    certificate: Certificate


class ContractingMap(eqx.Module):
    r"""A linear map on a graph that has one fixed point whatever its parameters.

    $h = \gamma A h + b$ for each head, where $A_{ij}$ belongs to an edge between $i$ and $j$ and is made of the edge's
    logit so that no row of $|A|$ adds up to more than one. So $\lVert\gamma A\rVert_\infty \le \gamma < 1$.

    **Arguments:**

    - `gamma`: in $[0, 1)$: how far the map reaches. A Python number, or an array, which then has a derivative.
    - `normalisation`: how logits become weights. `"outdegree"` is the one of the paper, $a = \operatorname{clip}(l, 0, 1)$
        over the number of edges in the row; its derivative is zero wherever the logit is outside of $[0, 1]$.
        `"sigmoid"` has $\operatorname{sigmoid}(l)$ instead of the clip. `"softmax"` makes rows that add up to one.
    - `activation`: a function $\phi$ of numbers with $|\phi(x) - \phi(y)| \le |x - y|$ (not checked), for
        $h = \phi(\gamma A h + b)$.
    - `rows`: which end of an edge is the row. With `"senders"`, as in the paper's program, a node hears from those it
        has edges to; with `"receivers"` from those that have edges to it, as in message passing, and the degree is the
        in-degree.

    **Raises:**

    `ValueError` for a `gamma` outside of $[0, 1)$, an unknown `normalisation` or `rows`.

    !!! Example

        ```python
        solution = ContractingMap(0.5, "softmax").solve(logits, bias, graph)
        solution.certificate.value  # bounds the error, graph by graph and head by head
        ```

    ??? cite "Reference"

        Park, Choo and Park, "Convergent Graph Solvers", arXiv:2106.01680.
    """

    gamma: Real[Array, ""] | float = 0.5
    normalisation: Normalisation = eqx.field(default="outdegree", static=True)
    activation: Callable[[Array], Array] | None = eqx.field(default=None, static=True)
    rows: Literal["senders", "receivers"] = eqx.field(default="senders", static=True)

    def __check_init__(self):
        if isinstance(self.gamma, int | float) and not 0 <= self.gamma < 1:
            raise ValueError(f"`gamma` must be in [0, 1), else there may be no fixed point; got {self.gamma}")
        if self.normalisation not in ("outdegree", "softmax", "sigmoid"):
            raise ValueError(f'`normalisation` must be "outdegree", "softmax" or "sigmoid"; got {self.normalisation!r}')
        if self.rows not in ("senders", "receivers"):
            raise ValueError(f'`rows` must be "senders" or "receivers"; got {self.rows!r}')

    def operator(self, logits: Float[Array, "edges heads"], graph: GraphsTuple, num_nodes: int) -> GraphOperator:
        r"""Return $I - \gamma A$, a Lineax operator on arrays of nodes by heads.

        **Arguments:**

        - `logits`: any finite numbers, one an edge and head.
        - `graph`: where the edges are. Its features are not read.
        - `num_nodes`: the number of nodes of all graphs together.

        **Returns:**

        A `lineax.AbstractLinearOperator`, which holds one number an edge and head.
        """
        ends = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
        rows, cols = ends if self.rows == "senders" else ends[::-1]
        if self.normalisation == "softmax":
            weights = segment_softmax(logits, rows, num_nodes)
        else:
            weights = jax.nn.sigmoid(logits) if self.normalisation == "sigmoid" else jnp.clip(logits, 0, 1)
            degree = jax.ops.segment_sum(jnp.ones(rows.shape, logits.dtype), rows, num_nodes)
            weights = weights / jnp.maximum(gather(degree, rows), 1)[:, None]
        gamma = jnp.asarray(self.gamma, logits.dtype)
        n_node = jnp.asarray(graph.n_node)
        return GraphOperator(values=gamma * weights, rows=rows, cols=cols, n_node=n_node, num_nodes=num_nodes)

    def solve(
        self,
        logits: Float[Array, "edges heads"],
        bias: Float[Array, "nodes heads"],
        graph: GraphsTuple,
        solver: Picard | lx.AbstractLinearSolver | None = None,
        *,
        throw: bool = True,
    ) -> GraphSolution:
        r"""Return the fixed point, differentiable in `logits`, `bias` and `gamma`.

        The derivative is that of the equation, not of the iteration: with $\lambda = (I - \gamma A^\top)^{-1}
        \partial L/\partial h$ it is $\partial L/\partial b = \lambda$ and $\partial L/\partial a_{ij} =
        \gamma\lambda_i h_j$, and $\lambda$ is solved for to the same certified precision.

        **Arguments:**

        - `logits`, `bias`: parameters, with as many heads each.
        - `graph`: where the edges are; its features are not read. An edge with an end at or beyond the number of nodes
            is none.
        - `solver`: [`fixedpoint_eq.graph.Picard`][], the default; or a Lineax solver for $I - \gamma A$ of all graphs
            and heads, such as [`implicit_core.krylov.FGMRES`][] or [`fixedpoint_eq.graph.DenseLU`][], from whose result
            the iteration then starts, so that the answer is certified in any case.
        - `throw`: whether to raise if a graph missed the tolerance; else look at `result`.

        **Returns:**

        A [`fixedpoint_eq.graph.GraphSolution`][].

        **Raises:**

        `TypeError` if `logits` or `bias` are not real arrays of one dtype, `ValueError` if their shapes do not fit the
        graph or each other, or a Lineax solver is given with an `activation`.
        """
        logits, bias = _check(logits, bias, graph)
        recipe = solver if isinstance(solver, Picard) else Picard()
        inner = None if isinstance(solver, Picard) else solver
        if inner is not None and self.activation is not None:
            raise ValueError(
                "`solver` must be a `Picard` for a map with an `activation`, which is not linear; got "
                f"{type(solver).__name__}"
            )
        phi = self.activation or (lambda x: x)
        operator = self.operator(logits, graph, bias.shape[0])
        rest = jax.lax.stop_gradient(eqx.tree_at(lambda op: op.values, operator, jnp.zeros((), bias.dtype)))
        with_values = lambda values: eqx.tree_at(lambda op: op.values, rest, values)
        apply = lambda h, theta: phi(with_values(theta[0]).apply(h) + theta[1])

        theta = operator.values, bias
        fixed = jax.lax.stop_gradient(theta)
        frozen = with_values(fixed[0])
        rate = frozen.rate()
        start = phi(fixed[1])
        if inner is not None:
            inner = jtu.tree_map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, inner)
            guess = lx.linear_solve(frozen, fixed[1], inner, throw=False).value
            start = jnp.where(jnp.isfinite(guess), guess, start)
        tol, slack = tolerance(frozen, rate, recipe.rtol)
        run = picard(lambda h: apply(h, fixed), start, frozen, rate, "max", tol, slack, recipe.max_steps)
        result, worst = _outcome(run, rate, frozen)
        value = jnp.asarray(run.value)
        if throw:
            value = worst.error_if(value, worst != RESULTS.successful)

        def linear_solver(h, _, theta):
            at = with_values(theta[0])
            if self.activation is not None:
                slope = jax.jvp(phi, (at.apply(h) + theta[1],), (jnp.ones_like(h),))[1]
                at = with_values(theta[0] * gather(slope, at.rows))
            return Certified(at, rate, recipe.rtol, inner)

        value = fixed_point(apply, linear_solver=linear_solver)(lambda _: value)(theta)
        certificate = Certificate(
            quantity="largest error of a node, per graph and head",
            value=run.error,
            kind="proved",
            assumptions=(
                "the rows of |gamma A| add up to at most `rate`",
                *(() if self.activation is None else ("`activation` is 1-Lipschitz",)),
                "up to rounding",
            ),
        )
        return GraphSolution(value, result, {"num_steps": run.num_steps, "rate": rate}, certificate)


def _check(logits: Any, bias: Any, graph: GraphsTuple) -> tuple[Array, Array]:
    logits, bias = jnp.asarray(logits), jnp.asarray(bias)
    for name, x in (("logits", logits), ("bias", bias)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"`{name}` must be real and of floating point; got {x.dtype}")
        if x.ndim != 2:
            raise ValueError(f"`{name}` must have two axes, the second of heads; got shape {x.shape}")
    if logits.dtype != bias.dtype:
        raise TypeError(f"`logits` and `bias` must have one dtype; got {logits.dtype} and {bias.dtype}")
    if logits.shape[1] != bias.shape[1]:
        raise ValueError(f"`logits` and `bias` must have as many heads; got shapes {logits.shape} and {bias.shape}")
    for name in ("senders", "receivers"):
        index = getattr(graph, name)
        if index.shape != logits.shape[:1]:
            raise ValueError(
                f"`logits` must have one row for each of `graph.{name}`, of shape {index.shape}; got {logits.shape}"
            )
    if 0 in bias.shape:
        raise ValueError(f"`bias` must have at least one node and one head; got shape {bias.shape}")
    return logits, bias


def _outcome(run: PicardRun, rate: Array, operator: GraphOperator) -> tuple[RESULTS, RESULTS]:
    size = operator.n_node.shape[0]
    bad = jax.ops.segment_sum((~jnp.isfinite(run.value)).astype(jnp.int32), operator.index(), size) > 0
    flags = tuple(jnp.any(flag, axis=1) for flag in (run.going, run.stalled, ~(rate < 1), bad))

    members = (
        RESULTS.nonlinear_max_steps_reached,
        RESULTS.no_progress,
        RESULTS.nonlinear_divergence,
        RESULTS.nonfinite,
    )

    def code(*flags):
        out: Any = RESULTS.successful
        for flag, member in zip(flags, members, strict=True):
            out = RESULTS.where(flag, member, out)  # pyright: ignore[reportArgumentType]
        return out

    return jax.vmap(code)(*flags), code(*map(jnp.any, flags))
