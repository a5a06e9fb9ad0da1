from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._graph_map import ContractingMap, GraphSolution
from ._graph_solve import Picard
from ._graph_tuple import GraphsTuple, gather, node_graphs, segment_softmax


Activation = Callable[[Array], Array]


class MLP(eqx.Module):
    """Dense layers of given widths, with an activation between them, on arrays with a leading axis.

    Unlike `equinox.nn.MLP` its hidden layers may differ in width, and it takes many rows at once.

    **Arguments:**

    - `widths`: of the input, of each hidden layer and of the output.
    - `activation`: between layers.
    - `key`: for the initial weights.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(self, widths: Sequence[int], activation: Activation = jax.nn.leaky_relu, *, key: PRNGKeyArray):
        keys = jr.split(key, len(widths) - 1)
        pairs = zip(widths[:-1], widths[1:], keys, strict=True)
        self.layers = tuple(eqx.nn.Linear(before, after, key=k) for before, after, k in pairs)
        self.activation = activation

    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """Apply the layers to every row."""
        for layer in self.layers[:-1]:
            x = self.activation(jax.vmap(layer)(x))
        return jax.vmap(self.layers[-1])(x)


class MPNNLayer(eqx.Module):
    r"""One round of messages with attention, which renews the features of edges and nodes.

    $e' = \mathrm{MLP}_e(e, h_s, h_r)$; $w = \operatorname{softmax}$ over the edges into a node of
    $\mathrm{MLP}_a(e, h_s, h_r)$; $h' = \mathrm{MLP}_n(\sum w e', h)$.

    **Arguments:**

    - `inputs`, `outputs`: the numbers of features of a node and of an edge.
    - `hidden`: widths of the hidden layers of the three networks.
    - `activation`, `aggregation`: `"sum"` or `"mean"` over the edges into a node.
    - `key`: for the initial weights.
    """

    edge: MLP
    attention: MLP
    node: MLP
    aggregation: Literal["sum", "mean"] = eqx.field(static=True)

    def __init__(
        self,
        inputs: tuple[int, int],
        outputs: tuple[int, int],
        hidden: Sequence[int] = (128,),
        *,
        activation: Activation = jax.nn.leaky_relu,
        aggregation: Literal["sum", "mean"] = "sum",
        key: PRNGKeyArray,
    ):
        if aggregation not in ("sum", "mean"):
            raise ValueError(f'`aggregation` must be "sum" or "mean"; got {aggregation!r}')
        edge_key, attention_key, node_key = jr.split(key, 3)
        ends = inputs[1] + 2 * inputs[0]
        self.edge = MLP((ends, *hidden, outputs[1]), activation, key=edge_key)
        self.attention = MLP((ends, *hidden, 1), activation, key=attention_key)
        self.node = MLP((outputs[1] + inputs[0], *hidden, outputs[0]), activation, key=node_key)
        self.aggregation = aggregation

    def __call__(
        self,
        nodes: Float[Array, "nodes _"],
        edges: Float[Array, "edges _"],
        senders: Int[Array, " edges"],
        receivers: Int[Array, " edges"],
    ) -> tuple[Float[Array, "nodes _"], Float[Array, "edges _"]]:
        """Return new features of the nodes and edges."""
        size = nodes.shape[0]
        ends = jnp.concatenate([edges, gather(nodes, senders), gather(nodes, receivers)], axis=1)
        edges = self.edge(ends)
        weights = segment_softmax(self.attention(ends), receivers, size)
        messages = jax.ops.segment_sum(weights * edges, receivers, size)
        if self.aggregation == "mean":
            degree = jax.ops.segment_sum(jnp.ones(receivers.shape, edges.dtype), receivers, size)
            messages = messages / jnp.maximum(degree, 1)[:, None]
        return self.node(jnp.concatenate([messages, nodes], axis=1)), edges


class MPNN(eqx.Module):
    """Rounds of messages: from the features of a graph to the parameters of a contracting map.

    **Arguments:**

    - `inputs`: the numbers of features of a node and of an edge.
    - `heads`: the number of outputs of a node and of an edge.
    - `num_hidden`: rounds before the last one.
    - `width`: features of nodes and edges between rounds.
    - `hidden`, `activation`, `aggregation`: of each round, see [`fixedpoint_eq.graph.MPNNLayer`][].
    - `key`: for the initial weights.

    !!! Example

        ```python
        bias, logits = MPNN((1, 1), heads=8, num_hidden=1, width=32, key=key)(graph)
        ```
    """

    layers: tuple[MPNNLayer, ...]

    def __init__(
        self,
        inputs: tuple[int, int],
        heads: int,
        num_hidden: int,
        width: int,
        hidden: Sequence[int] = (128,),
        *,
        activation: Activation = jax.nn.leaky_relu,
        aggregation: Literal["sum", "mean"] = "sum",
        key: PRNGKeyArray,
    ):
        sizes = [inputs] + [(width, width)] * num_hidden + [(heads, heads)]
        keys = jr.split(key, num_hidden + 1)
        self.layers = tuple(
            MPNNLayer(before, after, hidden, activation=activation, aggregation=aggregation, key=k)
            for before, after, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )

    def __call__(self, graph: GraphsTuple) -> tuple[Float[Array, "nodes heads"], Float[Array, "edges heads"]]:
        """Return the outputs of nodes and of edges."""
        nodes, edges = jnp.asarray(graph.nodes), jnp.asarray(graph.edges)
        senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, senders, receivers)
        return nodes, edges


class CGS(eqx.Module):
    r"""A convergent graph solver: the targets are read from the equilibrium of a learned map on the graph.

    The encoder makes the parameters of a [`fixedpoint_eq.graph.ContractingMap`][] with many heads, whose fixed point
    reaches across the graph at any distance; the decoder reads it. The gradient is that of the equilibrium.

    **Arguments:**

    - `encoder`: from a graph to (bias of the nodes, logits of the edges), such as [`fixedpoint_eq.graph.MPNN`][].
    - `map`: the contracting map.
    - `decoder`: from arrays of rows by heads to arrays of rows by outputs, such as [`fixedpoint_eq.graph.MLP`][].
    - `readout`: `None` for one output a node; `"sum"` for one a graph, decoded from the sum over its nodes.
    - `solver`: see [`fixedpoint_eq.graph.ContractingMap.solve`][].

    The sizes of the paper's three experiments are `CGS.value_iteration`, `CGS.pore_network` and
    `CGS.graph_classification`.

    **Raises:**

    `ValueError` for an unknown `readout`.

    !!! Example

        ```python
        model = CGS.value_iteration(key=jr.key(0))
        values = model(value_iteration_problem(jr.key(1)).graph)
        ```

    ??? cite "Reference"

        Park, Choo and Park, "Convergent Graph Solvers", arXiv:2106.01680.
    """

    encoder: Callable[[GraphsTuple], tuple[Array, Array]]
    map: ContractingMap
    decoder: Callable[[Array], Array]
    readout: Literal["sum"] | None = eqx.field(default=None, static=True)
    solver: Picard | None = None

    def __check_init__(self):
        if self.readout not in (None, "sum"):
            raise ValueError(f'`readout` must be `None` or "sum"; got {self.readout!r}')

    @staticmethod
    def value_iteration(map: ContractingMap | None = None, *, key: PRNGKeyArray) -> "CGS":
        """Make a model of the size that the paper has for graph value iteration: 64 heads after four rounds."""
        return _make((1, 1), 1, 64, 3, 64, (128,), map, key=key)

    @staticmethod
    def pore_network(map: ContractingMap | None = None, *, key: PRNGKeyArray) -> "CGS":
        """Make a model of the size that the paper has for pore networks: 16 heads after one round."""
        return _make((5, 3), 1, 16, 0, 32, (64,), map, key=key)

    @staticmethod
    def graph_classification(
        inputs: tuple[int, int], outputs: int, map: ContractingMap | None = None, *, key: PRNGKeyArray
    ) -> "CGS":
        """Make a model of the size that the paper has for classes of graphs: 32 heads after three rounds."""
        return _make(inputs, outputs, 32, 2, 64, (128,), map, jax.nn.silu, "mean", "sum", key=key)

    def equilibrium(self, graph: GraphsTuple, *, throw: bool = True) -> GraphSolution:
        """Return the fixed point that the decoder reads, with its certificate."""
        bias, logits = self.encoder(graph)
        return self.map.solve(logits, bias, graph, self.solver, throw=throw)

    def __call__(self, graph: GraphsTuple, *, throw: bool = True) -> Float[Array, "rows outputs"]:
        """Return the prediction for every node, or with a `readout` for every graph.

        **Arguments:**

        - `graph`: one or several graphs.
        - `throw`: whether to raise if the equilibrium of a graph was not found.

        **Returns:**

        An array of nodes, or graphs, by outputs.
        """
        h = self.equilibrium(graph, throw=throw).value
        if self.readout == "sum":
            h = jax.ops.segment_sum(h, node_graphs(graph), graph.n_node.shape[0])
        return self.decoder(h)


def _make(
    inputs: tuple[int, int],
    outputs: int,
    heads: int,
    num_hidden: int,
    width: int,
    hidden: tuple[int, ...],
    map: ContractingMap | None,
    activation: Activation = jax.nn.leaky_relu,
    aggregation: Literal["sum", "mean"] = "sum",
    readout: Literal["sum"] | None = None,
    *,
    key: PRNGKeyArray,
) -> CGS:
    encoder_key, decoder_key = jr.split(key)
    encoder = MPNN(
        inputs, heads, num_hidden, width, hidden, activation=activation, aggregation=aggregation, key=encoder_key
    )
    decoder = MLP((heads, 64, 32, outputs), activation, key=decoder_key)
    return CGS(encoder, ContractingMap() if map is None else map, decoder, readout)
