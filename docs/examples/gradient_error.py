# # A gradient that says how wrong it is
#
# Ridge regression by gradient descent, stopped early. The gradient of a loss in the regularisation strength is taken
# through the optimality condition, not through the iteration; the inexact solution makes it inexact, and the certificate
# bounds by how much. Here the modulus of strong convexity is known, so the bound is proved; where it is not, the
# certificate is an estimate and says so.

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from implicit_core import implicit


jax.config.update("jax_enable_x64", True)
x = jr.normal(jr.key(0), (60, 8)) * jnp.geomspace(0.3, 1, 8)[None, :]
y = jr.normal(jr.key(1), (60,))


def objective(w, lam):
    return 0.5 * jnp.sum((x @ w - y) ** 2) + 0.5 * lam * jnp.sum(w**2)


# The plain iteration, and the same with the derivative of what it converges to.


def descend(lam, num_steps):
    step = lambda _, w: w - jax.grad(objective)(w, lam) / (80 + lam)
    return jax.lax.fori_loop(0, num_steps, step, jnp.zeros(8))


ridge = implicit.argmin(objective, strong_convexity=lambda lam: lam + 2.0)(descend)
assert jnp.linalg.eigvalsh(x.T @ x)[0] > 2.0


def loss(w):
    return jnp.sum(w**2)


# The exact answer, in closed form, to compare with.

lam = 1.0
gram = x.T @ x + lam * jnp.eye(8)
w_exact = jnp.linalg.solve(gram, x.T @ y)
exact = -2 * w_exact @ jnp.linalg.solve(gram, w_exact)


@jax.jit
def measure(num_steps):
    w = ridge(lam, num_steps)
    gradient = jax.grad(lambda lam: loss(ridge(lam, num_steps)))(lam)
    # The loss is quadratic with Hessian 2 I; the objective is, too, and its mixed derivative is w itself.
    proved = ridge.certify(w, lam, loss, beta=0.0, gamma=1.0, smoothness=2.0)
    estimated = ridge.certify(w, lam, loss)
    return jnp.abs(gradient - exact), proved.value, estimated.value


@jax.jit
def unrolled(num_steps):
    # Forward mode through the iteration itself.
    return jnp.abs(jax.jvp(lambda lam: loss(descend(lam, num_steps)), (lam,), (1.0,))[1] - exact)


steps = np.arange(2, 82, 4)
errors, proved, estimated = (np.array(column) for column in zip(*map(measure, steps), strict=True))
print(f"after {steps[-1]} steps: error {errors[-1]:.1e}, proved bound {proved[-1]:.1e}, estimate {estimated[-1]:.1e}")

figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
axis.semilogy(steps, [float(unrolled(k)) for k in steps], color="#94a3b8", label="error, through the iteration")
axis.semilogy(steps, proved, "--", color="#b91c1c", label="bound, proved")
axis.semilogy(steps, errors, "o-", color="#1d4ed8", label="error, through the optimality condition")
axis.semilogy(steps, estimated, "x", color="#f59e0b", label="estimate, without any constant")
axis.set(xlabel="steps of gradient descent", ylabel="error of the gradient", title="Stopped early, and honest about it")
axis.legend()
axis.grid(alpha=0.3)
