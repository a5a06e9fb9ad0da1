"""Convergent graph solvers: learned maps on graphs that contract for any parameters, and problems with exact answers."""

from ._graph_map import ContractingMap, GraphSolution
from ._graph_net import CGS, MLP, MPNN, MPNNLayer
from ._graph_problems import (
    GraphProblem,
    diffusion_potential,
    mean_absolute_percentage_error,
    policy_accuracy,
    pore_network_problem,
    value_iteration_problem,
)
from ._graph_solve import DenseLU, GraphOperator, Picard
from ._graph_tuple import (
    GraphsTuple,
    batch,
    edge_mask,
    graph_mask,
    node_graphs,
    node_mask,
    pad,
    unbatch,
)


__all__ = [
    "CGS",
    "MLP",
    "MPNN",
    "ContractingMap",
    "DenseLU",
    "GraphOperator",
    "GraphProblem",
    "GraphSolution",
    "GraphsTuple",
    "MPNNLayer",
    "Picard",
    "batch",
    "diffusion_potential",
    "edge_mask",
    "graph_mask",
    "mean_absolute_percentage_error",
    "node_graphs",
    "node_mask",
    "pad",
    "policy_accuracy",
    "pore_network_problem",
    "unbatch",
    "value_iteration_problem",
]
