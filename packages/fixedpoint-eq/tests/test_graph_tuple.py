"""Graph tuples: side by side, apart again, and padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixedpoint_eq import graph as fg
from stationary_testkit import tree_allclose


def ring(n, first, xp=np):
    k = np.arange(n, dtype=np.int32)
    features = xp.asarray(first + np.arange(float(n))[:, None])
    ends = xp.asarray((k + 1) % n), xp.asarray(k)
    return fg.GraphsTuple(features, 10 * features, *ends, xp.ones((1, 2)), xp.asarray([n]), xp.asarray([n]))


def test_batch_and_back():
    graphs = [ring(3, 0.0), ring(1, 5.0), ring(4, 7.0)]
    together = fg.batch(graphs)
    np.testing.assert_array_equal(together.senders, [0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(together.receivers, [1, 2, 0, 3, 5, 6, 7, 4])
    np.testing.assert_array_equal(together.n_node, [3, 1, 4])
    np.testing.assert_array_equal(fg.node_graphs(together), [0, 0, 0, 1, 2, 2, 2, 2])
    assert isinstance(together.nodes, np.ndarray)
    for before, after in zip(graphs, fg.unbatch(together), strict=True):
        assert tree_allclose(before, after)
    # A batch of batches is a batch.
    assert tree_allclose(fg.batch([fg.batch(graphs[:2]), graphs[2]]), together)


def test_pad_and_masks():
    graph = fg.batch([ring(3, 1.0, jnp), ring(2, 1.0, jnp)])
    padded = jax.jit(lambda graph: fg.pad(graph, 8, 9, 5))(graph)
    np.testing.assert_array_equal(padded.n_node, [3, 2, 3, 0, 0])
    np.testing.assert_array_equal(padded.n_edge, [3, 2, 4, 0, 0])
    np.testing.assert_array_equal(padded.senders[5:], [5, 6, 7, 5])
    assert padded.globals.shape == (5, 2)
    for mask, count, size in ((fg.node_mask, 5, 8), (fg.edge_mask, 5, 9), (fg.graph_mask, 2, 5)):
        np.testing.assert_array_equal(jax.jit(mask)(padded), np.arange(size) < count)
    # Without padding edges.
    np.testing.assert_array_equal(fg.edge_mask(fg.pad(graph, 6, 5, 3)), np.ones(5, bool))


@pytest.mark.parametrize(
    ("sizes", "name"), [((5, 9, 3), "num_nodes"), ((6, 4, 3), "num_edges"), ((6, 9, 2), "num_graphs")]
)
def test_padding_needs_room(sizes, name):
    graph = fg.batch([ring(3, 1.0), ring(2, 1.0)])
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        fg.pad(graph, *sizes)


def test_bad_input():
    with pytest.raises(ValueError, match="`graphs` must have at least one graph"):
        fg.batch([])
    with pytest.raises(ValueError, match="features of one structure"):
        fg.batch([ring(3, 1.0), ring(3, 1.0)._replace(globals=None)])
    with pytest.raises(ValueError, match=r"`graph\.nodes` must have at least one array"):
        fg.node_graphs(ring(3, 1.0)._replace(nodes=None))
