"""Problems with exact answers, and the model that learns them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fixedpoint_eq import graph as fg
from stationary_testkit import no_retrace


def test_values_satisfy_bellmans_equation(getkey):
    key = getkey()
    problem = fg.value_iteration_problem(key, 5, num_states=(4, 30), num_actions=(2, 4), discount=0.8)
    graph, target = problem
    assert target.dtype == graph.edges.dtype == jnp.float64
    for part in fg.unbatch(graph):
        actions = part.n_edge[0] // part.n_node[0]
        assert 4 <= part.n_node[0] <= 30
        assert 2 <= actions <= 4
        np.testing.assert_array_equal(np.bincount(part.receivers), actions)
        assert np.all(part.senders != part.receivers)
        assert np.all(np.abs(part.edges) <= 1)
    gains = graph.edges[:, 0] + 0.8 * target[graph.senders, 0]
    best = jax.ops.segment_max(gains, graph.receivers, len(target))
    np.testing.assert_allclose(best, target[:, 0], rtol=0, atol=1e-13)
    again = fg.value_iteration_problem(key, 5, num_states=(4, 30), num_actions=(2, 4), discount=0.8)
    np.testing.assert_array_equal(again.target, target)


def test_metrics(getkey):
    problem = fg.value_iteration_problem(getkey(), 2)
    target = problem.target
    assert fg.policy_accuracy(problem, target) == 1
    # A constant more, on every state, changes no choice.
    assert fg.policy_accuracy(problem, target + 7) == 1
    # Knowing nothing is to take the best reward.
    graph = problem.graph
    size = len(target)
    peak = lambda x: jax.ops.segment_max(x, graph.receivers, size)
    gains = graph.edges[:, 0] + 0.9 * target[graph.senders, 0]
    greedy = graph.edges[:, 0] == peak(graph.edges[:, 0])[graph.receivers]
    expected = np.mean(np.asarray(peak(jnp.where(greedy, gains, -jnp.inf)) == peak(gains)))
    np.testing.assert_allclose(fg.policy_accuracy(problem, 0 * target), expected)
    assert 0 < expected < 1
    prediction, exact = jnp.array([[2.0], [3.0], [9.0]]), jnp.array([[4.0], [4.0], [0.1]])
    where = jnp.array([True, True, False])
    error = lambda to: fg.mean_absolute_percentage_error(prediction, exact, relative_to=to, where=where)
    np.testing.assert_allclose(error("target"), (50 + 25) / 2)
    np.testing.assert_allclose(error("prediction"), (100 + 100 / 3) / 2)


def test_pore_pressures_are_those_of_a_dense_solve(getkey):
    graph, target = fg.pore_network_problem(getkey(), 3, num_pores=(20, 40))
    p, k = np.asarray(target[:, 0]), np.asarray(graph.edges[:, 2])
    held, front = np.asarray(graph.nodes[:, 3]) > 0, np.asarray(graph.nodes[:, 4])
    n = len(p)
    matrix = np.zeros((n, n))
    np.subtract.at(matrix, (graph.receivers, graph.senders), k)
    matrix -= np.diag(matrix.sum(axis=1))
    matrix[held] = np.eye(n)[held]
    np.testing.assert_allclose(p, np.linalg.solve(matrix, np.where(held, front, 0)), atol=1e-12)
    # The maximum principle: nothing inside is as high, or as low, as the faces.
    assert np.all((p[~held] > 0) & (p[~held] < 1))
    assert np.all(np.isin(p[held], [0, 1]))
    # What goes in comes out, network by network.
    flow = np.zeros(n)
    np.add.at(flow, np.asarray(graph.receivers), k * (p[graph.senders] - p[graph.receivers]))
    index = np.asarray(fg.node_graphs(graph))
    np.testing.assert_allclose(np.bincount(index, flow), 0, atol=1e-12)
    # Throats have a positive length, and each is there in both directions.
    assert np.all(np.asarray(graph.edges) > 0)
    pairs = set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    assert pairs == {(b, a) for a, b in pairs}


def test_diffusion_on_a_line():
    line = fg.diffusion_potential([0, 1, 2], [1, 2, 3], [1.0, 2.0, 1.0], [True, False, False, True], [1.0, 9, 9, 0])
    np.testing.assert_allclose(line, [1, 0.6, 0.4, 0], rtol=1e-14)
    everything = fg.diffusion_potential([0], [1], [1.0], [True, True], [2.0, 3.0])
    np.testing.assert_array_equal(everything, [2, 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: fg.value_iteration_problem(key, 0), "`num_graphs` must be at least 1"),
        (lambda key: fg.value_iteration_problem(key, num_states=(1, 5)), "`num_states` must be at least 2"),
        (lambda key: fg.value_iteration_problem(key, num_actions=(3, 2)), "`num_actions` must be .* range not empty"),
        (lambda key: fg.value_iteration_problem(key, discount=1.0), "`discount` must be in"),
        (lambda key: fg.pore_network_problem(key, num_pores=(3, 9)), "`num_pores` must be at least 6"),
        (lambda key: fg.pore_network_problem(key, face_depth=0.5), "`face_depth` must be between"),
        (lambda key: fg.pore_network_problem(key, face_depth=1e-9), "100 draws of .* had none within `face_depth`"),
        (lambda _: fg.diffusion_potential([0, 2], [1, 3], [1.0, 1.0], [1, 0, 0, 0], [1.0, 0, 0, 0]),
         "`held` must have a node in every connected part.*2 of 4 nodes in 1 part.*node 2"),
        (lambda _: fg.diffusion_potential([0], [1], [1.0], [0, 0], [1.0, 0.0]), "`held` must have .*2 of 2 nodes"),
        (lambda _: fg.diffusion_potential([0], [1], [0.0], [1, 0], [1.0, 0.0]), "`conductance` must be positive"),
        (lambda _: fg.diffusion_potential([0], [1, 0], [1.0], [1, 0], [1.0, 0.0]), "one entry for each link"),
        (lambda _: fg.diffusion_potential([0], [1], [1.0], [1, 0], [1.0]), "one entry for each node"),
        (lambda _: fg.diffusion_potential([0], [2], [1.0], [1, 0], [1.0, 0.0]), "must be from 0 to 1"),
        (lambda _: fg.mean_absolute_percentage_error(jnp.ones((1, 1)), jnp.ones((1, 1)), relative_to="x"),
         "`relative_to` must be"),
        (lambda _: fg.CGS(None, fg.ContractingMap(), None, readout="max"), "`readout` must be"),  # pyright: ignore[reportArgumentType]
        (lambda key: fg.MPNNLayer((1, 1), (1, 1), aggregation="max", key=key), "`aggregation` must be"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
def test_bad_input(call, message, getkey, untyped):
    with pytest.raises(ValueError, match=message):
        call(getkey())


def test_no_problems_under_jit(getkey):
    with pytest.raises(TypeError, match="`key` must be concrete"):
        jax.jit(lambda key: fg.value_iteration_problem(key).target)(getkey())


def small_model(key, **kwargs):
    one, two = jr.split(key)
    encoder = fg.MPNN((5, 3), heads=4, num_hidden=1, width=6, hidden=(8,), aggregation="mean", key=one)
    return fg.CGS(encoder, fg.ContractingMap(0.9, "softmax"), fg.MLP((4, 8, 5, 1), key=two), **kwargs)


def test_model_respects_graphs(getkey):
    problem = fg.pore_network_problem(getkey(), 2, num_pores=(10, 20), face_depth=0.3)
    graph = problem.graph
    model = small_model(getkey())
    nodes, edges = len(graph.nodes), len(graph.senders)
    # All in one shape, that of two graphs and some padding: one compilation.
    predict = no_retrace(lambda model, graph: (model(graph), model.equilibrium(graph)))
    sizes = nodes + 3, edges + 5, 4
    out, solution = predict(model, fg.pad(graph, *sizes))
    assert out.shape == (nodes + 3, 1)
    assert np.all(solution.certificate.value < 1e-10)
    np.testing.assert_array_equal(out, model.decoder(solution.value))
    alone, _ = predict(model, fg.pad(jax.tree.map(jnp.asarray, fg.unbatch(graph)[0]), *sizes[:2], 4))
    first = fg.unbatch(graph)[0]
    size = len(first.nodes)
    np.testing.assert_allclose(alone[:size], out[:size], rtol=1e-10)
    order = np.random.default_rng(0).permutation(size)
    place = np.argsort(order).astype(np.int32)
    moved = first._replace(nodes=first.nodes[order], senders=place[first.senders], receivers=place[first.receivers])
    permuted, _ = predict(model, fg.pad(jax.tree.map(jnp.asarray, moved), *sizes[:2], 4))
    np.testing.assert_allclose(permuted[:size], out[:size][order], rtol=1e-9)
    # A sum over nodes, then the decoder: one row a graph.
    summed = fg.CGS(model.encoder, model.map, model.decoder, readout="sum")
    by_graph = eqx.filter_jit(summed)(graph)
    h = solution.value[:nodes]
    by_hand = model.decoder(jnp.stack([h[:size].sum(axis=0), h[size:].sum(axis=0)]))
    np.testing.assert_allclose(by_graph, by_hand, rtol=1e-9)


def test_attention_weighs_the_edges_into_a_node():
    # Two edges into node 0, which differ by their feature alone.
    layer = fg.MPNNLayer((1, 1), (2, 3), (4,), key=jr.key(0))
    nodes, edges = jnp.ones((3, 1)), jnp.array([[1.0], [-2.0], [0.5]])
    senders, receivers = jnp.array([1, 2, 0]), jnp.array([0, 0, 1])
    out, messages = eqx.filter_jit(layer)(nodes, edges, senders, receivers)
    ends = jnp.concatenate([edges, nodes, nodes], axis=1)
    weight = jax.nn.softmax(layer.attention(ends)[:2, 0])
    np.testing.assert_allclose(messages, layer.edge(ends), rtol=1e-12)
    message = weight @ messages[:2]
    np.testing.assert_allclose(out[0], layer.node(jnp.concatenate([message, nodes[0]])[None])[0], rtol=1e-12)
    # Nobody speaks to node 2.
    np.testing.assert_allclose(out[2], layer.node(jnp.array([[0, 0, 0, 1.0]]))[0], rtol=1e-12)


def test_model_learns(getkey):
    problem = fg.pore_network_problem(getkey(), 4, num_pores=(20, 30))
    one, two = jr.split(getkey())
    encoder = fg.MPNN((5, 3), heads=8, num_hidden=0, width=1, hidden=(32,), key=one)
    model = fg.CGS(encoder, fg.ContractingMap(0.9, "softmax"), fg.MLP((8, 32, 1), key=two))

    @eqx.filter_jit
    def step(model):
        loss = lambda model: jnp.mean((model(problem.graph) - problem.target) ** 2)
        value, gradient = eqx.filter_value_and_grad(loss)(model)
        return value, eqx.apply_updates(model, jax.tree.map(lambda g: -0.05 * g, gradient))

    losses = []
    for _ in range(400):
        value, model = step(model)
        losses.append(float(value))
    # A constant, the best that a model without the graph could say, has the variance of the target.
    assert min(losses) < 0.5 * float(jnp.var(problem.target)) < losses[0]


def test_sizes_of_the_paper():
    for model, heads in (
        (eqx.filter_eval_shape(fg.CGS.value_iteration, key=jr.key(0)), 64),
        (eqx.filter_eval_shape(fg.CGS.pore_network, key=jr.key(0)), 16),
        (eqx.filter_eval_shape(lambda key: fg.CGS.graph_classification((7, 1), 2, key=key), key=jr.key(0)), 32),
    ):
        assert model.encoder.layers[-1].node.layers[-1].out_features == heads
        assert [layer.out_features for layer in model.decoder.layers[:-1]] == [64, 32]
    assert model.readout == "sum"
