# # Newton beside Sinkhorn
#
# Random linear assignment, $C_{ij} \sim U[0, 1]$, 500 x 500, $\eta = 1200$: the first row of the paper's Table 1. Sinkhorn
# gains a digit every few thousand iterations, Newton doubles the digits at each step once it is near.

import jax
import matplotlib.pyplot as plt
import numpy as np
import ot_sns
from ot_sns import plot, problems


jax.config.update("jax_enable_x64", True)
problem = problems.lap(500).problem()

# The error after $k$ steps is that of a solve that may make no more. One compilation serves all limits.


def error_after(solver, k):
    return float(ot_sns.solve(problem, solver, max_steps=k, throw=False).stats["error"])


newton = range(1, 16)
sinkhorn = [int(k) for k in np.unique(np.geomspace(1, 20_000, 16).round())]
histories = {
    "SparseNewton": (newton, [error_after(ot_sns.SparseNewton(), k) for k in newton]),
    "Sinkhorn": (sinkhorn, [error_after(ot_sns.Sinkhorn(), k) for k in sinkhorn]),
    "Sinkhorn, over-relaxed": (sinkhorn, [error_after(ot_sns.Sinkhorn(relaxation=1.9), k) for k in sinkhorn]),
}
for name, (steps, errors) in histories.items():
    print(f"{name:22} {errors[-1]:.1e} after {steps[-1]} steps")

# The algorithm as it was published: 20 Sinkhorn iterations, then Newton with a Hessian of six entries a row.

literal = ot_sns.solve(problem, ot_sns.SNS(num_warmup=20, num_newton=9, tol=1e-14), throw=False)
total = int(literal.stats["num_steps"])
print(f"{'SNS, literally':22} {float(literal.stats['error']):.1e} after {total} steps")

figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
plot.convergence(histories, tol=1e-9, ax=axis)
axis.loglog(total, float(literal.stats["error"]), "*", markersize=12, color="#7c3aed")
axis.annotate("SNS, literally", (total, float(literal.stats["error"])), (8, -3), textcoords="offset points")
