"""Contracting maps: the value and the derivative against dense matrices, the certificate, and what may not matter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from fixedpoint_eq import RESULTS, graph as fg
from implicit_core.krylov import FGMRES
from stationary_testkit import finite_difference_jvp, max_live_bytes


HEADS = 3


def tuple_of(num_nodes, senders, receivers):
    n, e = num_nodes, len(senders)
    receivers, senders = (jnp.asarray(x, jnp.int32) for x in (receivers, senders))
    n_node, n_edge = (jnp.array([k], jnp.int32) for k in (n, e))
    return fg.GraphsTuple(jnp.ones((n, 1)), jnp.ones((e, 1)), receivers, senders, None, n_node, n_edge)


def random_graph(seed, num_nodes, num_edges):
    rng = np.random.default_rng(seed)
    return tuple_of(num_nodes, rng.integers(0, num_nodes, num_edges), rng.integers(0, num_nodes, num_edges))


PAIR = fg.batch([random_graph(0, 5, 12), random_graph(1, 9, 20)])
NODES, EDGES = 14, 32


def parameters(key, dtype=jnp.float64, graph=PAIR):
    one, two = jr.split(key)
    logits = jr.normal(one, (graph.senders.shape[0], HEADS), dtype)
    return 3 * logits, jr.normal(two, (graph.nodes.shape[0], HEADS), dtype)


def softmax(gamma):
    return fg.ContractingMap(jnp.array(gamma), "softmax")


def like_pair(graph, logits, bias):
    """Pad a smaller graph to the shapes of the pair, for which the solve is compiled already."""
    rows = lambda x, n: jnp.pad(x, ((0, n - len(x)), (0, 0)))
    return rows(logits, EDGES), rows(bias, NODES), fg.pad(jax.tree.map(jnp.asarray, graph), NODES, EDGES, 2)


@eqx.filter_jit
def solve(map, logits, bias, graph, solver=None):
    return map.solve(logits, bias, graph, solver, throw=False)


def dense(map, logits, bias, graph=PAIR):
    matrix = map.operator(logits, graph, bias.shape[0]).as_matrix()
    return jnp.linalg.solve(matrix, bias.reshape(-1)).reshape(bias.shape)


@eqx.filter_jit
def gradient_and_solution(map, logits, bias, cotangent):
    def loss(args):
        map, logits, bias = args
        solution = map.solve(logits, bias, PAIR)
        return jnp.sum(cotangent * solution.value), solution

    return eqx.filter_grad(loss, has_aux=True)((map, logits, bias))


@pytest.mark.parametrize("normalisation", ["outdegree", "softmax", "sigmoid"])
def test_value_and_gradient_are_those_of_dense_solves(normalisation, getkey):
    map = fg.ContractingMap(jnp.array(0.8), normalisation)
    logits, bias = parameters(getkey())
    logits = logits.at[0].set(1e300).at[1].set(-1e300)
    cotangent = jr.normal(getkey(), bias.shape)
    (got_map, got_logits, got_bias), solution = gradient_and_solution(map, logits, bias, cotangent)
    h = dense(map, logits, bias)
    index = np.asarray(fg.node_graphs(PAIR))
    error, size, bound = np.abs(solution.value - h), np.abs(solution.value), np.asarray(solution.certificate.value)
    for g in range(2):
        # The certificate is an upper bound, and as small as was asked for.
        assert np.all(error[index == g].max(axis=0) <= bound[g] + 1e-15)
        assert np.all(bound[g] <= 2e-12 * size[index == g].max(axis=0))
    assert np.all(solution.result == RESULTS.successful)
    # The norm of the map, from the dense matrix.
    operator = map.operator(logits, PAIR, NODES)
    matrix = np.eye(NODES * HEADS) - operator.as_matrix()
    assert np.abs(matrix).sum(axis=1).max() <= 0.8 * (1 + 1e-15)
    np.testing.assert_allclose(solution.stats["rate"].max(), np.abs(matrix).sum(axis=1).max(), rtol=1e-14)
    # dL/db = lambda.
    lam = jnp.linalg.solve(operator.as_matrix().T, cotangent.reshape(-1)).reshape(bias.shape)
    np.testing.assert_allclose(got_bias, lam, rtol=1e-10)
    # dL/da_ij = gamma lambda_i h_j, on to the logits through the normalisation alone.
    by_weight = 0.8 * lam[PAIR.senders] * h[PAIR.receivers]
    _, pull = jax.vjp(lambda logits: map.operator(logits, PAIR, NODES).values / 0.8, logits)
    np.testing.assert_allclose(got_logits, pull(by_weight)[0], atol=1e-10)
    # dL/dgamma = lambda^T A h.
    np.testing.assert_allclose(got_map.gamma, jnp.sum(lam * operator.apply(h)) / 0.8, rtol=1e-10)


def test_takes_no_more_steps_than_the_rate_says(getkey):
    logits, bias = parameters(getkey())
    solution = solve(softmax(0.7), logits, bias, PAIR, fg.Picard(jnp.array(1e-8)))
    index = np.asarray(fg.node_graphs(PAIR))
    for g in range(2):
        h, b = (np.abs(x[index == g]).max(axis=0) for x in (solution.value, bias))
        # One step more, because the norm of the last iterate stands for that of the fixed point.
        limit = np.log(1e-8 * h * 0.3 / b) / np.log(0.7) + 1
        assert np.all(np.asarray(solution.stats["num_steps"][g]) <= np.ceil(limit))
        assert np.all(solution.certificate.value[g] <= 1e-8 * h)


def test_second_derivatives(getkey):
    map = fg.ContractingMap(0.6, "sigmoid")
    args, tangents = parameters(getkey()), parameters(getkey())
    loss = lambda logits, bias: jnp.sum(map.solve(logits, bias, PAIR, fg.Picard(rtol=1e-14)).value ** 2)
    gradient = jax.grad(loss, argnums=(0, 1))
    second = jax.jit(lambda *args: jax.jvp(gradient, args, tangents)[1])(*args)
    for got, want in zip(second, finite_difference_jvp(jax.jit(gradient), args, tangents), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("solver", [FGMRES(), fg.DenseLU(9), fg.DenseLU(6)], ids=["fgmres", "lu", "small lu"])
def test_linear_solvers_leave_little_to_do(solver, getkey):
    map = fg.ContractingMap(0.99, "softmax")
    logits, bias = parameters(getkey())

    def loss(solve, *args):
        solution = solve(*args)
        return jnp.sum(jnp.sin(getattr(solution, "value", solution))), solution

    run = lambda solve: jax.jit(jax.grad(lambda *args: loss(solve, *args), (0, 1), has_aux=True))(logits, bias)
    got, solution = run(lambda logits, bias: map.solve(logits, bias, PAIR, solver))
    want, expected = run(lambda logits, bias: dense(map, logits, bias))
    np.testing.assert_allclose(solution.value, expected, rtol=2e-11)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    steps = solution.stats["num_steps"]
    if solver == fg.DenseLU(6):
        # The second graph has nine nodes, and is iterated to the end.
        assert steps[0].max() <= 2
        assert steps[1].min() > 100
    else:
        assert steps.max() <= 20


def test_activation(getkey):
    map = fg.ContractingMap(0.7, "softmax", jnp.tanh)
    args, tangents = parameters(getkey()), parameters(getkey())
    value = jax.jit(lambda logits, bias: map.solve(logits, bias, PAIR, fg.Picard(rtol=1e-14)).value)
    h = value(*args)
    np.testing.assert_allclose(h, jnp.tanh(map.operator(args[0], PAIR, NODES).apply(h) + args[1]), atol=1e-13)
    weight = jr.normal(getkey(), h.shape)
    push = lambda *args: jax.jvp(value, args, tangents)[1]
    pull = lambda *args: jax.grad(lambda args: jnp.sum(weight * value(*args)))(args)
    pushed, pulled = jax.jit(lambda *args: (push(*args), pull(*args)))(*args)
    np.testing.assert_allclose(pushed, finite_difference_jvp(value, args, tangents), atol=1e-8)
    along = sum(jnp.sum(a * b) for a, b in zip(pulled, tangents, strict=True))
    np.testing.assert_allclose(along, jnp.sum(weight * pushed), rtol=1e-9)
    with pytest.raises(ValueError, match="`solver` must be a `Picard`"):
        map.solve(*args, PAIR, FGMRES())


def test_special_cases(getkey):
    logits, bias = parameters(getkey())
    nothing = solve(softmax(0.0), logits, bias, PAIR)
    np.testing.assert_array_equal(nothing.value, bias)
    assert np.all(nothing.certificate.value == 0)
    zero = solve(softmax(0.9), logits, 0 * bias, PAIR)
    np.testing.assert_array_equal(zero.value, 0 * bias)
    assert jnp.all(zero.result == RESULTS.successful)
    # Rows that add up to one, and a bias of 1 - gamma: the answer is one. Every node of a ring has an edge.
    ring = tuple_of(6, range(6), [(k + 1) % 6 for k in range(6)])
    ones = solve(softmax(0.9), *like_pair(ring, logits[:6], jnp.full((6, HEADS), 0.1)))
    np.testing.assert_allclose(ones.value[:6], 1, rtol=1e-11)


def test_graphs_without_edges_and_without_nodes():
    logits, bias = jnp.ones((2, HEADS)), jnp.ones((3, HEADS))

    @eqx.filter_jit
    def run(graph, logits):
        def loss(bias):
            solution = softmax(0.5).solve(logits, bias, graph)
            return jnp.sum(solution.value**2), solution

        return jax.grad(loss, has_aux=True)(bias)

    gradient, solution = run(tuple_of(3, [], []), logits[:0])
    np.testing.assert_array_equal(solution.value, bias)
    np.testing.assert_array_equal(gradient, 2 * bias)
    assert jnp.all(solution.result == RESULTS.successful)
    # Beside one that has some.
    _, solution = run(fg.batch([tuple_of(2, [0, 1], [1, 0]), tuple_of(0, [], []), tuple_of(1, [], [])]), logits)
    np.testing.assert_allclose(solution.value, [[2.0] * HEADS, [2.0] * HEADS, [1.0] * HEADS], rtol=1e-11)
    assert jnp.all(solution.result == RESULTS.successful)


def test_personalised_pagerank(getkey):
    # A walker goes along a random out-edge with probability gamma, else back to `source`: the transpose of the map
    # that hears from senders, so its derivative.
    graph = tuple_of(5, [0, 0, 1, 2, 3, 3, 4], [1, 2, 2, 0, 4, 1, 0])
    map = fg.ContractingMap(0.85, "softmax")
    logits = jnp.zeros((7, 1))
    source = jnp.array([0.0, 0, 0, 1, 0])[:, None]
    pull = jax.jit(jax.grad(lambda b: jnp.sum(0.15 * source * map.solve(logits, b, graph).value)))
    rank = pull(source)
    walk = np.array([[0, 0.5, 0.5, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0.5, 0, 0, 0.5], [1, 0, 0, 0, 0]])
    power = np.asarray(source[:, 0])
    for _ in range(400):
        power = 0.85 * walk.T @ power + 0.15 * np.asarray(source[:, 0])
    np.testing.assert_allclose(rank[:, 0], power, rtol=1e-10)
    np.testing.assert_allclose(rank.sum(), 1, rtol=1e-11)


def test_rows_of_receivers_is_the_graph_turned_round(getkey):
    logits, _ = parameters(getkey())
    turned = PAIR._replace(senders=PAIR.receivers, receivers=PAIR.senders)
    one = fg.ContractingMap(0.7, "sigmoid", rows="receivers").operator(logits, PAIR, NODES)
    other = fg.ContractingMap(0.7, "sigmoid").operator(logits, turned, NODES)
    np.testing.assert_array_equal(one.as_matrix(), other.as_matrix())
    # A node with edges to others alone hears from nobody.
    pair = tuple_of(2, [0, 0], [1, 1])
    senders, receivers = fg.ContractingMap(0.5, "softmax"), fg.ContractingMap(0.5, "softmax", rows="receivers")
    for map, matrix in ((senders, [[1, -0.5], [0, 1]]), (receivers, [[1, 0], [-0.5, 1]])):
        operator = map.operator(jnp.ones((2, 1)), pair, 2)
        np.testing.assert_allclose(operator.as_matrix(), matrix)


def test_neither_order_nor_company_nor_padding_matters(getkey):
    map = softmax(0.8)
    logits, bias = parameters(getkey())
    both = solve(map, logits, bias, PAIR)
    # The first graph takes the same steps without the second.
    first = fg.unbatch(PAIR)[0]
    alone = solve(map, *like_pair(first, logits[:12], bias[:5]))
    np.testing.assert_allclose(alone.value[:5], both.value[:5], rtol=1e-15)
    np.testing.assert_array_equal(alone.stats["num_steps"][0], both.stats["num_steps"][0])
    # So it does in padded company, whose bias is not zero.
    padded = fg.pad(PAIR, 20, 40, 4)
    more = solve(map, jnp.pad(logits, ((0, 8), (0, 0))), jnp.pad(bias, ((0, 6), (0, 0)), constant_values=1e6), padded)
    np.testing.assert_allclose(more.value[:NODES], both.value, rtol=1e-15)
    np.testing.assert_array_equal(more.stats["num_steps"][:2], both.stats["num_steps"])
    # Edges beyond the nodes are none.
    beyond = PAIR._replace(senders=PAIR.senders.at[3].set(99), receivers=PAIR.receivers.at[3].set(99))
    without = dense(map, jnp.delete(logits, 3, 0), bias, _without_edge(PAIR, 3))
    np.testing.assert_allclose(solve(map, logits, bias, beyond).value, without, rtol=1e-11)
    # A permutation of nodes and edges permutes the answer.
    nodes, edges = np.random.default_rng(3).permutation(5), np.random.default_rng(4).permutation(12)
    place = np.argsort(nodes)
    moved = tuple_of(5, place[first.senders[edges]], place[first.receivers[edges]])
    permuted = solve(map, *like_pair(moved, logits[:12][edges], bias[:5][nodes]))
    np.testing.assert_allclose(permuted.value[:5], both.value[:5][nodes], rtol=1e-11)


def _without_edge(graph, k):
    keep = jnp.arange(graph.senders.shape[0]) != k
    return graph._replace(senders=graph.senders[keep], receivers=graph.receivers[keep])


def test_float32_and_vmap(getkey):
    map = softmax(0.9)
    logits, bias = parameters(getkey(), jnp.float32)
    solution = solve(map, logits, bias, PAIR)
    assert solution.value.dtype == jnp.float32
    wide = dense(map, logits.astype(jnp.float64), bias.astype(jnp.float64))
    np.testing.assert_allclose(solution.value, wide, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(wide))))
    close = solve(softmax(0.9999), logits, bias, PAIR, fg.DenseLU(9))
    assert jnp.all(close.result == RESULTS.successful)
    biases = jnp.stack([bias, 2 * bias, 0 * bias])
    many = eqx.filter_jit(jax.vmap(lambda b: map.solve(logits, b, PAIR).value))(biases)
    np.testing.assert_allclose(many[1], 2 * solution.value, rtol=1e-4)
    np.testing.assert_array_equal(many[2], 0 * bias)


def test_failures_say_so(getkey):
    logits, bias = parameters(getkey())
    map = softmax(0.9)
    few = solve(map, logits, bias, PAIR, fg.Picard(max_steps=3))
    assert jnp.all(few.result == RESULTS.nonlinear_max_steps_reached)
    error = np.abs(few.value - dense(map, logits, bias))
    assert np.all(error[:5].max(axis=0) <= few.certificate.value[0])
    none = solve(map, logits, bias, PAIR, fg.Picard(max_steps=0))
    assert jnp.all(none.result == RESULTS.nonlinear_max_steps_reached)
    exact = solve(map, logits, bias, PAIR, fg.Picard(jnp.array(0.0)))
    assert np.all((exact.result == RESULTS.no_progress) | (exact.result == RESULTS.successful))
    assert np.all(exact.certificate.value < 1e-13)
    expanding = solve(softmax(1.5), logits, bias, PAIR)
    assert jnp.all(expanding.result == RESULTS.nonlinear_divergence)
    assert jnp.all(jnp.isinf(expanding.certificate.value))
    # One graph's NaN is no affair of the other's.
    broken = solve(map, logits, bias.at[0, 0].set(jnp.nan), PAIR)
    np.testing.assert_array_equal(broken.result == RESULTS.nonfinite, [True, False])
    np.testing.assert_array_equal(broken.result == RESULTS.successful, [False, True])
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        eqx.filter_jit(map.solve)(logits, bias, PAIR, fg.Picard(max_steps=3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fg.ContractingMap(1.0), ValueError, "`gamma` must be in"),
        (lambda: fg.ContractingMap(-0.1), ValueError, "`gamma` must be in"),
        (lambda: fg.ContractingMap(normalisation="none"), ValueError, "`normalisation` must be"),  # pyright: ignore[reportArgumentType]
        (lambda: fg.ContractingMap(rows="nodes"), ValueError, "`rows` must be"),  # pyright: ignore[reportArgumentType]
        (lambda: fg.Picard(rtol=-1.0), ValueError, "`rtol` must be"),
        (lambda: fg.Picard(max_steps=-1), ValueError, "`max_steps` must be"),
        (lambda: fg.DenseLU(0), ValueError, "`max_nodes` must be"),
        (lambda: _solve_with(logits=jnp.ones((EDGES, 2))), ValueError, "as many heads"),
        (lambda: _solve_with(logits=jnp.ones((EDGES + 1, HEADS))), ValueError, "one row for each of `graph.senders`"),
        (lambda: _solve_with(logits=jnp.ones((EDGES, HEADS), jnp.float32)), TypeError, "one dtype"),
        (lambda: _solve_with(bias=jnp.ones(NODES)), ValueError, "`bias` must have two axes"),
        (lambda: _solve_with(bias=jnp.ones((NODES, HEADS), jnp.complex128)), TypeError, "`bias` must be real"),
        (lambda: _solve_with(bias=jnp.ones((0, HEADS))), ValueError, "at least one node"),
        (lambda: fg.DenseLU(3).init(lx.MatrixLinearOperator(jnp.eye(3)), {}), TypeError, "a contracting map"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()


def _solve_with(logits=None, bias=None):
    logits = jnp.ones((EDGES, HEADS)) if logits is None else logits
    bias = jnp.ones((NODES, HEADS)) if bias is None else bias
    return fg.ContractingMap().solve(logits, bias, PAIR)


def test_no_dense_matrix(getkey):
    graph = random_graph(0, 2000, 8000)
    logits, bias = parameters(getkey(), graph=graph)
    loss = lambda logits, bias: jnp.sum(fg.ContractingMap().solve(logits, bias, graph).value)
    # That of one head alone would have 32 MB.
    assert max_live_bytes(lambda *args: jax.grad(loss, (0, 1))(*args), logits, bias) < 4e6
