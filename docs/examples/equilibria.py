# # Roads to an equilibrium
#
# A batch of 64 inputs, each with an equilibrium of 256 units of its own: $z = \tanh(W z + x)$ with symmetric $W$ of norm
# 0.99. Some samples are hard and some are easy, and `solve` with `batch_axis=0` gives each its own history, its own end
# and its own status.

import fixedpoint_eq as fpe
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from fixedpoint_eq import diagnostics, plot, problems


problem = problems.tanh_deq(jr.key(0), dtype=jnp.float32)
solvers = {
    "Picard": fpe.Picard(1e-5, 0.0),
    "Damped, 0.7": fpe.Damped(0.7, rtol=1e-5, atol=0.0),
    "Anderson": fpe.Anderson(1e-5, 0.0),
    "Broyden": fpe.Broyden(1e-5, 0.0),
}
solutions = {
    name: fpe.solve(problem.fn, problem.z0, problem.args, solver, batch_axis=0, keep_trace=True)
    for name, solver in solvers.items()
}
for name, solution in solutions.items():
    steps = np.asarray(solution.stats["num_steps"])
    print(f"{name:12} {steps.min():3} to {steps.max():3} steps")

# Thin lines are samples, bold ones the slowest of each solver.

figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
plot.convergence(solutions, ax=axis).set_xlim(0, 110)

# The map contracts by $\lVert W\rVert_2 = 0.99$ everywhere, which the problem knows. Given that, the solution comes with a
# *proved* bound on its distance from the fixed point. It is a hundred residuals, as far as the factor allows one to say.

certified = fpe.solve(problem.fn, problem.z0, problem.args, batch_axis=0, contraction=problem.contraction)
certificate = certified.certificate
assert certificate is not None  # there is one, as a factor was given
print(f"{certificate.quantity}: at most {float(jnp.max(certificate.value)):.1e} ({certificate.kind})")

# The rate of Picard's iteration is the spectral radius of the Jacobian at the equilibrium. Arnoldi's method finds it, and
# complex pairs with it, from forty products; the same map with a $W$ that is not symmetric has its spectrum inside a disc.

gauss = problems.tanh_deq(jr.key(0), norm=0.95, symmetric=False, dtype=jnp.float32)
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for axis, p, title in zip(axes, (problem, gauss), ("symmetric, norm 0.99", "Gaussian, norm 0.95"), strict=True):
    z = fpe.solve(p.fn, p.z0, p.args, batch_axis=0).value
    estimate = diagnostics.spectral_radius(p.fn, z[:1], {**p.args, "x": p.args["x"][:1]}, num_steps=40)
    print(f"{title}: spectral radius {float(estimate.radius):.4f}, residual {float(estimate.error):.0e}")
    plot.spectrum(estimate, ax=axis).set_title(title)
