# # A potential from edge to edge of a network
#
# A convergent graph solver reads a graph, makes from it a linear map that contracts whatever its parameters are, and decodes
# that map's equilibrium, which carries information across the whole graph. Here it learns the potential of networks in which
# one node is held at one and another at zero, with labels that are exact, and is tried on networks that are larger. Beside it
# stands the same network without an equilibrium, whose messages go as far as it has rounds.

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
from fixedpoint_eq import graph
from scipy.spatial import Delaunay


def network(rng, size):
    """Draw points of the plane, joined by a triangulation; hold the leftmost at one and the rightmost at zero."""
    points = rng.uniform(size=(size, 2))
    triangles = Delaunay(points).simplices
    links = np.unique(
        np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])), axis=0
    )
    conductance = rng.uniform(0.5, 1.5, len(links))
    values = np.zeros(size)
    values[points[:, 0].argmin()] = 1
    held = np.zeros(size, bool)
    held[[points[:, 0].argmin(), points[:, 0].argmax()]] = True
    target = graph.diffusion_potential(links[:, 0], links[:, 1], conductance, held, values)
    # The model does not see where points are: only which nodes are held, and the conductances.
    nodes = np.stack([held, values], 1).astype(np.float32)
    senders, receivers = np.concatenate([links, links[:, ::-1]]).T.astype(np.int32)
    edges = np.tile(conductance, 2)[:, None].astype(np.float32)
    n_node, n_edge = np.array([size], np.int32), np.array([len(edges)], np.int32)
    return graph.GraphsTuple(nodes, edges, receivers, senders, None, n_node, n_edge), target, points


def batch(rng, sizes, slots):
    graphs, targets, _ = zip(*(network(rng, n) for n in sizes), strict=True)
    num_nodes, num_edges = slots
    padded = graph.pad(graph.batch(graphs), num_nodes, num_edges, len(sizes) + 1)
    target = np.concatenate(targets)
    return padded, jnp.asarray(np.pad(target, (0, num_nodes - len(target))), jnp.float32)


def model(gamma, *, key):
    a, b = jr.split(key)
    encoder = graph.MPNN((2, 1), 16, num_hidden=1, width=16, hidden=(32,), key=a)
    contracting = graph.ContractingMap(gamma, "softmax")
    return graph.CGS(encoder, contracting, graph.MLP((16, 32, 1), key=b))


def train(gamma, batches, num_steps=600):
    net = model(gamma, key=jr.key(1))
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    state = optimiser.init(eqx.filter(net, eqx.is_inexact_array))

    def loss(net, graphs, target):
        return jnp.mean((net(graphs)[:, 0] - target) ** 2, where=graph.node_mask(graphs))

    @eqx.filter_jit
    def step(net, state, graphs, target):
        grads = eqx.filter_grad(loss)(net, graphs, target)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(net, updates), state

    for k in range(num_steps):
        net, state = step(net, state, *batches[k % len(batches)])
    return net


# Networks of 20 to 40 nodes; the contraction is by construction, so every solve comes with a proved bound on its error.

rng = np.random.default_rng(0)
batches = [batch(rng, rng.integers(20, 41, 8), (330, 1800)) for _ in range(40)]
networks = {"two rounds of messages": train(0.0, batches), "and an equilibrium": train(0.9, batches)}

tests = {n: [network(rng, n) for _ in range(4)] for n in (40, 80)}
for name, net in networks.items():
    for n, cases in tests.items():
        graphs, targets, _ = zip(*cases, strict=True)
        error = eqx.filter_jit(net)(graph.batch(graphs))[:, 0] - np.concatenate(targets)
        print(f"{name}, {n} nodes: root mean square error {float(np.sqrt(np.mean(error**2))):.3f}")
solution = networks["and an equilibrium"].equilibrium(tests[80][0][0])
print(
    f"{solution.certificate.quantity}: {float(jnp.max(solution.certificate.value)):.0e} ({solution.certificate.kind})"
)

# The first of the larger ones, whose size neither has seen.

case, target, points = tests[80][0]
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharex=True, sharey=True)
shown = {"exact": target, **{name: np.asarray(net(case)[:, 0]) for name, net in networks.items()}}
for axis, (name, values) in zip(axes, shown.items(), strict=True):
    axis.plot(
        *points[np.stack([case.senders, case.receivers])].transpose(2, 0, 1), color="0.85", linewidth=0.7, zorder=0
    )
    axis.scatter(*points.T, c=values, cmap="viridis", vmin=0, vmax=1, s=45)
    axis.set_title(name)
    axis.set_axis_off()
figure.colorbar(axes[0].collections[0], ax=axes, label="potential", shrink=0.8)
