from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class GraphsTuple(NamedTuple):
    """One directed graph, or several side by side, in arrays: the fields of `jraph.GraphsTuple`, in its order.

    The nodes of all graphs stand in one array, those of the first graph first, and so do the edges. An edge goes from
    `senders[k]` to `receivers[k]`; both count nodes through the whole array. Made of NumPy arrays it stays in NumPy until
    JAX gets it.

    **Arguments:**

    - `nodes`, `edges`: features, pytrees of arrays with a leading axis of nodes or of edges, or `None`.
    - `receivers`, `senders`: integer arrays with one entry an edge.
    - `globals`: features of the graphs, a pytree of arrays with a leading axis of graphs, or `None`.
    - `n_node`, `n_edge`: how many nodes and edges each graph has.

    !!! Example

        ```python
        ring = GraphsTuple(
            nodes=jnp.ones((3, 1)), edges=jnp.ones((3, 1)), globals=None,
            senders=jnp.array([0, 1, 2]), receivers=jnp.array([1, 2, 0]),
            n_node=jnp.array([3]), n_edge=jnp.array([3]),
        )
        ```

    ??? cite "Reference"

        Godwin et al., "Jraph: A library for graph neural networks in jax", github.com/google-deepmind/jraph.
    """

    nodes: Any
    edges: Any
    receivers: Any
    senders: Any
    globals: Any
    n_node: Any
    n_edge: Any


def num_nodes(graph: GraphsTuple) -> int:
    """Return the number of node slots of all graphs together, which is static."""
    leaves = jtu.tree_leaves(graph.nodes)
    if not leaves:
        raise ValueError("`graph.nodes` must have at least one array, whose length is the number of nodes; got none")
    return leaves[0].shape[0]


def _namespace(tree: Any) -> Any:
    return np if all(isinstance(leaf, np.ndarray) for leaf in jtu.tree_leaves(tree)) else jnp


def batch(graphs: Sequence[GraphsTuple]) -> GraphsTuple:
    """Put graphs, or batches of them, side by side in one tuple.

    **Arguments:**

    - `graphs`: tuples with features of one structure.

    **Returns:**

    A tuple with as many graphs as all of them have; of NumPy arrays if all of them are.

    **Raises:**

    `ValueError` if there is none, or the structures differ.

    !!! Example

        ```python
        batch([ring, ring]).n_node  # [3 3]
        ```
    """
    graphs = list(graphs)
    if not graphs:
        raise ValueError("`graphs` must have at least one graph; got none")
    structures = {jtu.tree_structure(graph) for graph in graphs}
    if len(structures) > 1:
        raise ValueError(f"`graphs` must have features of one structure; got {structures}")
    xp = _namespace(graphs)
    offsets = np.cumsum([0] + [num_nodes(graph) for graph in graphs[:-1]])
    shifted = [
        graph._replace(senders=graph.senders + offset, receivers=graph.receivers + offset)
        for graph, offset in zip(graphs, (int(o) for o in offsets), strict=True)
    ]
    return jtu.tree_map(lambda *leaves: xp.concatenate(leaves), *shifted)


def unbatch(graph: GraphsTuple) -> list[GraphsTuple]:
    """Cut a batch into its graphs, in NumPy; the inverse of [`fixedpoint_eq.graph.batch`][]. Not under `jit`."""
    graph = jtu.tree_map(np.asarray, graph)
    node_ends, edge_ends = np.cumsum(graph.n_node), np.cumsum(graph.n_edge)
    out = []
    for k, (node_end, edge_end) in enumerate(zip(node_ends, edge_ends, strict=True)):
        node_start, edge_start = node_end - graph.n_node[k], edge_end - graph.n_edge[k]
        nodes, edges = slice(node_start, node_end), slice(edge_start, edge_end)
        out.append(
            GraphsTuple(
                nodes=jtu.tree_map(lambda x, s=nodes: x[s], graph.nodes),
                edges=jtu.tree_map(lambda x, s=edges: x[s], graph.edges),
                receivers=graph.receivers[edges] - node_start.astype(graph.receivers.dtype),
                senders=graph.senders[edges] - node_start.astype(graph.senders.dtype),
                globals=jtu.tree_map(lambda x, k=k: x[k : k + 1], graph.globals),
                n_node=graph.n_node[k : k + 1],
                n_edge=graph.n_edge[k : k + 1],
            )
        )
    return out


def pad(graph: GraphsTuple, num_nodes: int, num_edges: int, num_graphs: int) -> GraphsTuple:
    """Bring a batch to given sizes, so that batches of several sizes share one compiled program.

    One graph is added that has all the nodes and edges that are missing, with features of zero, and then graphs without
    nodes. So real graphs are not touched. [`fixedpoint_eq.graph.node_mask`][] and its like tell them from the padding.

    **Arguments:**

    - `graph`: one or several graphs.
    - `num_nodes`, `num_edges`, `num_graphs`: the sizes to reach: of nodes and graphs at least one more than there are.

    **Returns:**

    The tuple of these sizes.

    **Raises:**

    `ValueError` if a size is too small.

    !!! Example

        ```python
        pad(ring, 8, 8, 2).n_node  # [3 5]
        ```
    """
    xp = _namespace(graph)
    own = globals()["num_nodes"](graph), graph.senders.shape[0], graph.n_node.shape[0]
    wanted = num_nodes, num_edges, num_graphs
    for name, have, want, least in zip(("num_nodes", "num_edges", "num_graphs"), own, wanted, (1, 0, 1), strict=True):
        if want < have + least:
            raise ValueError(f"`{name}` must be at least {have + least} for a batch with {have}; got {want}")
    more_nodes, more_edges, more_graphs = (want - have for want, have in zip(wanted, own, strict=True))

    def extend(tree, count):
        fill = lambda x: xp.concatenate([x, xp.zeros((count, *x.shape[1:]), x.dtype)])
        return jtu.tree_map(fill, tree)

    def loops(ends):
        # One after the other on all added nodes: many edges in one row would add up with much rounding.
        return xp.concatenate([ends, xp.asarray(own[0] + np.arange(more_edges) % more_nodes, ends.dtype)])

    def counts(x, first):
        return xp.concatenate([x, xp.asarray([first] + [0] * (more_graphs - 1), x.dtype)])

    return GraphsTuple(
        nodes=extend(graph.nodes, more_nodes),
        edges=extend(graph.edges, more_edges),
        receivers=loops(graph.receivers),
        senders=loops(graph.senders),
        globals=extend(graph.globals, more_graphs),
        n_node=counts(graph.n_node, more_nodes),
        n_edge=counts(graph.n_edge, more_edges),
    )


def _padding_graph(graph: GraphsTuple) -> Array:
    # The padding has at least one node, and only graphs without nodes come after it.
    n_node = jnp.asarray(graph.n_node)
    return n_node.shape[0] - 1 - jnp.argmax(n_node[::-1] != 0)


def graph_mask(graph: GraphsTuple) -> Bool[Array, " graphs"]:
    """Say which graphs of a padded batch are real. The batch must come from [`fixedpoint_eq.graph.pad`][]."""
    padding = _padding_graph(graph)
    return jnp.arange(graph.n_node.shape[0], dtype=padding.dtype) < padding


def node_mask(graph: GraphsTuple) -> Bool[Array, " nodes"]:
    """Say which nodes of a padded batch are real. The batch must come from [`fixedpoint_eq.graph.pad`][]."""
    n_node = jnp.asarray(graph.n_node)
    size = num_nodes(graph)
    return jnp.arange(size, dtype=n_node.dtype) < size - n_node[_padding_graph(graph)]


def edge_mask(graph: GraphsTuple) -> Bool[Array, " edges"]:
    """Say which edges of a padded batch are real. The batch must come from [`fixedpoint_eq.graph.pad`][]."""
    n_edge = jnp.asarray(graph.n_edge)
    size = graph.senders.shape[0]
    return jnp.arange(size, dtype=n_edge.dtype) < size - n_edge[_padding_graph(graph)]


def node_graphs(graph: GraphsTuple) -> Int[Array, " nodes"]:
    """Return for every node the number of its graph."""
    n_node = jnp.asarray(graph.n_node)
    return _node_graphs(n_node, num_nodes(graph))


def _node_graphs(n_node: Int[Array, " graphs"], size: int) -> Int[Array, " nodes"]:
    index = jnp.arange(n_node.shape[0], dtype=jnp.int32)
    return jnp.repeat(index, n_node, total_repeat_length=size)


def gather(x: Array, index: Array) -> Array:
    """Return the rows of `x` at `index`, and zeros where that is out of range."""
    return x.at[index].get(mode="fill", fill_value=0)


def segment_softmax(
    logits: Float[Array, "edges heads"], index: Int[Array, " edges"], size: int
) -> Float[Array, "edges heads"]:
    """Return weights that sum to one over the entries with the same `index`."""
    peak = jax.lax.stop_gradient(jax.ops.segment_max(logits, index, size))
    # A segment without entries has the peak of minus infinity, which nobody reads; but zero times it is not a number.
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    weights = jnp.exp(logits - gather(peak, index))
    total = gather(jax.ops.segment_sum(weights, index, size), index)
    return weights / jnp.where(total > 0, total, 1)
