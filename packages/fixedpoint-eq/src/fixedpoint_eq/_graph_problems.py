from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ._demo_extra import demo_extra
from ._graph_tuple import GraphsTuple, batch, gather


_DRAWS = 100


class GraphProblem(NamedTuple):
    """Graphs, and what is to be predicted from them.

    **Arguments:**

    - `graph`: one or several graphs.
    - `target`: the exact answer, an array of nodes by one.
    """

    graph: GraphsTuple
    target: Any


def value_iteration_problem(
    key: PRNGKeyArray,
    num_graphs: int = 1,
    *,
    num_states: tuple[int, int] = (20, 49),
    num_actions: tuple[int, int] = (5, 9),
    discount: float = 0.9,
) -> GraphProblem:
    r"""Draw deterministic decision processes on graphs, with their exact values.

    Every state $i$ has edges from other states, its actions, drawn with replacement; action $k$ pays the reward $r_k$ in
    $[-1, 1]$ and leads to the state that the edge comes from. The target is the fixed point of
    $V_i = \max_k (r_k + \gamma V_{s_k})$ over the edges into $i$, by policy iteration: exact up to the rounding of one
    linear solve in float64. Made on the host; not under `jit`.

    **Arguments:**

    - `key`: a key.
    - `num_graphs`: how many.
    - `num_states`, `num_actions`: the least and the largest number of nodes of a graph, and of edges into a node, drawn
        for each graph.
    - `discount`: $\gamma$, in $[0, 1)$.

    **Returns:**

    A [`fixedpoint_eq.graph.GraphProblem`][]: one node feature, always one; one edge feature, the reward.

    **Raises:**

    `ValueError` for an empty range, fewer than two states, or a discount outside of $[0, 1)$.

    !!! Example

        ```python
        graph, values = value_iteration_problem(jr.key(0), 32)
        ```

    ??? cite "Reference"

        Park, Choo and Park, "Convergent Graph Solvers", arXiv:2106.01680, graph value iteration.
    """
    rng = _host_rng(key)
    _check_range("num_graphs", (num_graphs, num_graphs), 1)
    _check_range("num_states", num_states, 2)
    _check_range("num_actions", num_actions, 1)
    if not 0 <= discount < 1:
        raise ValueError(f"`discount` must be in [0, 1); got {discount}")
    graphs, targets = [], []
    for _ in range(num_graphs):
        n, actions = (int(rng.integers(low, high + 1)) for low, high in (num_states, num_actions))
        # One of the others: those from `i` on move up by one.
        other = rng.integers(0, n - 1, (n, actions))
        sources = other + (other >= np.arange(n)[:, None])
        rewards = rng.uniform(-1, 1, (n, actions))
        targets.append(_policy_iteration(sources, rewards, discount)[:, None])
        receivers = np.repeat(np.arange(n), actions)
        graphs.append(_graph(np.ones((n, 1)), rewards.reshape(-1, 1), sources.reshape(-1), receivers))
    return _on_device(graphs, targets)


def _policy_iteration(sources: np.ndarray, rewards: np.ndarray, discount: float) -> np.ndarray:
    states = np.arange(len(sources))
    policy = np.argmax(rewards, axis=1)
    while True:
        matrix = np.eye(len(states))
        np.subtract.at(matrix, (states, sources[states, policy]), discount)
        values = np.linalg.solve(matrix, rewards[states, policy])
        gains = rewards + discount * values[sources]
        best = np.argmax(gains, axis=1)
        # A change has to be an improvement beyond rounding, so this cannot go in circles.
        better = gains[states, best] > gains[states, policy] + 1e-12
        if not better.any():
            return values
        policy = np.where(better, best, policy)


def pore_network_problem(
    key: PRNGKeyArray, num_graphs: int = 1, *, num_pores: tuple[int, int] = (50, 200), face_depth: float = 0.15
) -> GraphProblem:
    r"""Draw networks of pores in a cube, with the exact pressures of a fluid that creeps through.

    Pores are random points, throats the edges of their Delaunay triangulation. Diameters are lognormal around $10^{-5}$ m
    in a cube of $10^{-3}$ m, at most 0.9 times the distance of the nearest pair; a throat is as wide as its narrower pore,
    and conducts $\pi r^4 / (8\mu\ell)$. The pores near the front face ($x$ small) are held at pressure one, those near
    the back face at zero; the target is the pressure of every pore, relative to the front's, by one sparse factorisation
    in float64. Needs SciPy, which the extra `demo` brings. Made on the host; not under `jit`.

    **Arguments:**

    - `key`: a key.
    - `num_graphs`: how many.
    - `num_pores`: the least and the largest number of pores, drawn for each network.
    - `face_depth`: pores within this part of the cube's side from the front and back faces are held.

    **Returns:**

    A [`fixedpoint_eq.graph.GraphProblem`][]. Node features: the position in units of the side, whether the pressure is
    held, and the pressure if it is, else zero. Edges, one in either direction for each throat: diameter in units of
    $10^{-5}$ m, length in units of the side, conductance in units of the network's largest (the pressures depend on
    ratios only).

    **Raises:**

    `ValueError` for an empty range, fewer than six pores, or if a hundred draws have no pore near a face; `ImportError`
    without SciPy.

    !!! Example

        ```python
        graph, pressures = pore_network_problem(jr.key(0), 32)
        ```

    ??? cite "Reference"

        Park, Choo and Park, "Convergent Graph Solvers", arXiv:2106.01680, physical diffusion.
    """
    rng = _host_rng(key)
    _check_range("num_graphs", (num_graphs, num_graphs), 1)
    _check_range("num_pores", num_pores, 6)
    if not 0 < face_depth < 0.5:
        raise ValueError(f"`face_depth` must be between 0 and 0.5; got {face_depth}")
    with demo_extra("pore networks"):
        from scipy import spatial
    graphs, targets = [], []
    for _ in range(num_graphs):
        n = int(rng.integers(num_pores[0], num_pores[1] + 1))
        points, front, back = _pores(rng, n, face_depth)
        simplices = spatial.Delaunay(points).simplices
        pairs = np.concatenate([simplices[:, [i, j]] for i in range(4) for j in range(i)])
        a, b = np.unique(np.sort(pairs, axis=1), axis=0).T
        distance = np.linalg.norm(points[a] - points[b], axis=1)
        # A Delaunay triangulation has the nearest pair among its edges.
        diameters = np.minimum(np.exp(rng.normal(np.log(0.01), 0.1, n)), 0.9 * distance.min())
        width = np.minimum(diameters[a], diameters[b])
        length = distance - (diameters[a] + diameters[b]) / 2
        conductance = width**4 / length
        conductance = conductance / conductance.max()
        pressure = diffusion_potential(a, b, conductance, front | back, front.astype(np.float64))
        held = (front | back).astype(np.float64)
        nodes = np.concatenate([points, np.stack([held, front.astype(np.float64)], axis=1)], axis=1)
        edges = np.stack([width / 0.01, length, conductance], axis=1)
        ends = np.concatenate([a, b]), np.concatenate([b, a])
        graphs.append(_graph(nodes, np.concatenate([edges, edges]), *ends))
        targets.append(pressure[:, None])
    return _on_device(graphs, targets)


def _pores(rng: np.random.Generator, n: int, face_depth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for _ in range(_DRAWS):
        points = rng.uniform(size=(n, 3))
        front, back = points[:, 0] < face_depth, points[:, 0] > 1 - face_depth
        if front.any() and back.any():
            return points, front, back
    raise ValueError(
        f"{_DRAWS} draws of {n} pores (`num_pores`) had none within `face_depth` = {face_depth} of the front face, or none "
        "of the back face, so no pressure is held there; draw more pores, or take a larger `face_depth`"
    )


def diffusion_potential(
    senders: Any, receivers: Any, conductance: Any, held: Any, values: Any
) -> Float[np.ndarray, " nodes"]:
    r"""Solve for the potential on a network, exactly: $\sum_j k_{ij} (p_i - p_j) = 0$ where it is not held.

    **Arguments:**

    - `senders`, `receivers`: the ends of the links, each link once.
    - `conductance`: $k$, positive, one a link.
    - `held`: which nodes have a given potential, an array of booleans.
    - `values`: their potentials; read where `held`.

    **Returns:**

    A NumPy array of float64.

    **Raises:**

    `ValueError` if a conductance is not positive, or some node has no path to a held one, whose potential would be
    arbitrary; `ImportError` without SciPy.

    !!! Example

        ```python
        diffusion_potential([0, 1], [1, 2], [1.0, 1.0], [True, False, True], [1.0, 0.0, 0.0])  # [1. 0.5 0.]
        ```
    """
    with demo_extra("potentials on networks"):
        from scipy import sparse
        from scipy.sparse import csgraph, linalg
    senders, receivers, held = np.asarray(senders), np.asarray(receivers), np.asarray(held, bool)
    k, values = np.asarray(conductance, np.float64), np.asarray(values, np.float64)
    if not senders.shape == receivers.shape == k.shape or k.ndim != 1:
        raise ValueError(
            "`senders`, `receivers` and `conductance` must have one entry for each link; got shapes "
            f"{senders.shape}, {receivers.shape} and {k.shape}"
        )
    if held.shape != values.shape or held.ndim != 1:
        raise ValueError(
            f"`held` and `values` must have one entry for each node; got shapes {held.shape} and {values.shape}"
        )
    if any(np.any((ends < 0) | (ends >= len(held))) for ends in (senders, receivers)):
        raise ValueError(f"`senders` and `receivers` must be from 0 to {len(held) - 1}, the nodes of `held`")
    if not np.all(k > 0) or not np.all(np.isfinite(k)):
        raise ValueError("`conductance` must be positive and finite; got " + str(k[~((k > 0) & np.isfinite(k))][:3]))
    n = len(held)
    links = sparse.coo_matrix((k, (senders, receivers)), shape=(n, n)).tocsr()
    links = links + links.T
    count, component = csgraph.connected_components(links, directed=False)
    reached = np.isin(component, component[held])
    if not reached.all():
        raise ValueError(
            f"`held` must have a node in every connected part of the network; {int((~reached).sum())} of {n} nodes in "
            f"{count - len(np.unique(component[held]))} part(s) have no path to one, for instance node "
            f"{int(np.argmin(reached))}"
        )
    out = np.where(held, values, 0)
    if not held.all():
        laplacian = (sparse.diags(np.asarray(links.sum(axis=1)).ravel()) - links).tocsc()
        free = ~held
        rhs = -laplacian[free][:, held] @ out[held]
        out[free] = linalg.spsolve(laplacian[free][:, free], rhs)
    return out


def mean_absolute_percentage_error(
    prediction: Float[Array, "nodes 1"],
    target: Float[Array, "nodes 1"],
    *,
    relative_to: str = "target",
    where: Bool[Array, " nodes"] | None = None,
) -> Float[Array, ""]:
    """Return the mean of the relative error of the nodes, as a percentage.

    **Arguments:**

    - `prediction`, `target`: one a node.
    - `relative_to`: `"target"`, or `"prediction"`, which is what the paper's program divides by.
    - `where`: which nodes count; `None` for all.

    **Raises:**

    `ValueError` for another `relative_to`.

    !!! Example

        ```python
        mean_absolute_percentage_error(jnp.array([[1.1]]), jnp.array([[1.0]]))  # 10.0
        ```
    """
    if relative_to not in ("target", "prediction"):
        raise ValueError(f'`relative_to` must be "target" or "prediction"; got {relative_to!r}')
    scale = target if relative_to == "target" else prediction
    error = 100 * jnp.abs((prediction - target) / scale)[:, 0]
    return jnp.mean(error, where=where)


def policy_accuracy(
    problem: GraphProblem,
    prediction: Float[Array, "nodes 1"],
    *,
    discount: float = 0.9,
    where: Bool[Array, " nodes"] | None = None,
) -> Float[Array, ""]:
    """Return how often the best action by predicted values is one of the best by exact values.

    **Arguments:**

    - `problem`: of [`fixedpoint_eq.graph.value_iteration_problem`][].
    - `prediction`: a value for each state.
    - `discount`: that of the problem.
    - `where`: which nodes count; `None` for all.

    **Returns:**

    A number from zero to one.

    !!! Example

        ```python
        policy_accuracy(problem, problem.target)  # 1.0
        ```
    """
    graph, target = problem
    senders, receivers, rewards = (jnp.asarray(x) for x in (graph.senders, graph.receivers, graph.edges))
    target = jnp.asarray(target)
    size = target.shape[0]

    def gains(values):
        gain = rewards[:, 0] + discount * gather(values, senders)[:, 0]
        return gain, gather(jax.ops.segment_max(gain, receivers, size), receivers)

    (gain, best), (predicted, chosen) = gains(target), gains(prediction)
    slack = float(jnp.finfo(target.dtype).eps) ** 0.75
    right = (predicted >= chosen) & (gain >= best - slack)
    hits = jax.ops.segment_max(right.astype(jnp.int32), receivers, size)
    return jnp.mean(jnp.maximum(hits, 0).astype(target.dtype), where=where)


def _host_rng(key: PRNGKeyArray) -> np.random.Generator:
    if isinstance(key, jax.core.Tracer):
        raise TypeError("`key` must be concrete: the problems are made on the host, outside of `jit` and `vmap`")
    data = jr.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data))


def _check_range(name: str, bounds: tuple[int, int], least: int) -> None:
    if not least <= bounds[0] <= bounds[1]:
        raise ValueError(f"`{name}` must be at least {least} and its range not empty; got {bounds}")


def _graph(nodes: np.ndarray, edges: np.ndarray, senders: np.ndarray, receivers: np.ndarray) -> GraphsTuple:
    n_node, n_edge = (np.array([len(x)], np.int32) for x in (nodes, edges))
    receivers, senders = (x.astype(np.int32) for x in (receivers, senders))
    return GraphsTuple(nodes, edges, receivers, senders, None, n_node, n_edge)


def _on_device(graphs: list[GraphsTuple], targets: list[np.ndarray]) -> GraphProblem:
    dtype = jnp.result_type(float)
    put = lambda x: jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)
    return jtu.tree_map(put, GraphProblem(batch(graphs), np.concatenate(targets)))
