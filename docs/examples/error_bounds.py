# # Conjugate gradients, with the error between two bounds
#
# A solver that minimises a residual does not know its error. Conjugate gradients does, if a lower bound of the spectrum is
# known (a ridge, a modulus of convexity): Gauss and Gauss-Radau quadrature enclose the energy norm of the error at the
# price of one product.

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import matplotlib.pyplot as plt
import numpy as np
from implicit_core import RESULTS
from implicit_core.krylov import PCG


jax.config.update("jax_enable_x64", True)
n = 200
q, _ = jnp.linalg.qr(jr.normal(jr.key(0), (n, n)))
eigenvalues = jnp.geomspace(1, 1e3, n)
matrix = (q * eigenvalues[None, :]) @ q.T
b = jr.normal(jr.key(1), (n,))
exact = q @ ((q.T @ b) / eigenvalues)
operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)


def after(num_steps):
    solver = PCG(rtol=0.0, max_steps=num_steps, lower_bound=0.9, mode="soft")
    solution = lx.linear_solve(operator, b, solver)
    error = solution.value - exact
    certificate = solution.stats["certificate"]
    return float(jnp.sqrt(error @ matrix @ error)), float(certificate.error_lower), float(certificate.error_upper)


steps = list(range(10, 210, 20))
error, lower, upper = np.array([after(k) for k in steps]).T
print(f"upper bound / error: {np.min(upper / error):.2f} to {np.max(upper / error):.2f}")

# In float32 the same system is solved as far as the precision reaches, and no further: the solver stops there of itself
# and says that it did, whatever tolerance was asked for.

single = lx.MatrixLinearOperator(matrix.astype(jnp.float32), lx.positive_semidefinite_tag)
solution = lx.linear_solve(single, b.astype(jnp.float32), PCG(rtol=1e-8), throw=False)
relres = float(solution.stats["certificate"].true_relres)
print(f"{solution.stats['num_steps']} steps to a relative residual of {relres:.1e}")
print("stagnated:", bool(solution.stats["result"] == RESULTS.stagnation))

figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
axis.fill_between(steps, lower, upper, color="#1d4ed8", alpha=0.15, label="between the bounds")
axis.semilogy(steps, error, "o-", color="#1d4ed8", label="error in the energy norm")
axis.set(xlabel="steps of conjugate gradients", ylabel=r"$\|x - x_*\|_A$", title="Condition number 1000, $n$ = 200")
axis.legend()
axis.grid(alpha=0.3)
