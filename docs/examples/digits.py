# # A zero becomes a one
#
# Two of scikit-learn's handwritten digits, 28 x 28 pixels each, are two distributions of ink. The plan between them says
# where every pixel's ink goes; stopped on the way, it shows the cheapest morphing from one to the other.

import jax
import matplotlib.pyplot as plt
import numpy as np
import ot_sns
from ot_sns import problems


jax.config.update("jax_enable_x64", True)

# `problems` holds the problems of the paper and of its rivals. This one has the paper's regularisation, $\eta = 1200$
# for a squared distance that is divided by its maximum.

named = problems.digit_pair(0, 1)
solution = ot_sns.solve(named.problem())
for name in ("error", "num_newton", "num_cg", "num_sinkhorn"):
    print(f"{name:12} {float(solution.stats[name]):.3g}")
print(f"transport cost {float(solution.transport_cost()):.10f}")

# How far is the value from the optimal one? The certificate is a proof, by weak duality, that does not trust the solver.

certificate = solution.certificate()
print(f"{certificate.quantity}: at most {certificate.value:.1e} ({certificate.kind})")

# The ink of source pixel $i$ that goes to target pixel $j$ is at $(1 - t) x_i + t y_j$ at time $t$.

plan = np.asarray(solution.matrix())
rows, columns = np.divmod(np.arange(plan.shape[0]), 28)
i, j = np.nonzero(plan > 1e-9 * plan.max())


def frame(t):
    at = [(1 - t) * p[i] + t * p[j] for p in (rows, columns)]
    return np.histogram2d(*at, bins=28, range=[[-0.5, 27.5]] * 2, weights=plan[i, j])[0]


figure, axes = plt.subplots(1, 6, figsize=(12, 2.3), layout="constrained")
for axis, t in zip(axes, np.linspace(0, 1, 6), strict=True):
    axis.imshow(frame(t), cmap="magma", interpolation="bilinear")
    axis.set_title(f"t = {t:.1f}")
    axis.set_axis_off()
