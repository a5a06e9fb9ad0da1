# # Equilibrium propagation beside the true gradient
#
# A network settles, its cost nudges it a little, and it settles again: how the equilibrium answers is an error signal for
# every unit, and the gradient is local from there. If the weights are symmetric, that is backpropagation. If they are not,
# it is something else, and the nudge being finite adds an error of its own. This page shows both, and what removes them.

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import matplotlib.pyplot as plt
from fixedpoint_eq import diagnostics, ep, plot


jax.config.update("jax_enable_x64", True)

# Three layers, forward and feedback weights drawn independently.

field = ep.mlp((6, 12, 10, 8), num_outputs=5)
params = field.init(key=jr.key(0), gain=0.8)
x, y = jr.normal(jr.key(1), (3, 6)), jnp.array([0, 2, 4])
tight = ep.Settle(tau=1.0, rtol=1e-15, max_steps=400)


@eqx.filter_jit
def gradient(estimator):
    return ep.gradient(field, params, x, y, estimator, free=tight, alignment=True, throw=False)


# The reference is recurrent backpropagation, a linear solve with the transposed Jacobian of the equilibrium.

true, _ = gradient(ep.RBP(lx.LU()))
estimators = {
    "EP, N = 6": ep.Cauchy(0.05, 6),
    "AsymEP, two nudges": ep.AsymEP(ep.Symmetric(0.05)),
    "holomorphic AsymEP, N = 6": ep.AsymEP(ep.Cauchy(0.05, 6)),
}
results = {name: gradient(estimator) for name, estimator in estimators.items()}
for name, (_, info) in results.items():
    assert info.alignment is not None
    _, cosines = info.alignment
    print(f"{name:26} least cosine with the true error signal {float(jnp.min(cosines)):.9f}")

figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
gradients = {name: grads for name, (grads, _) in results.items() if name != "AsymEP, two nudges"}
plot.gradient_scatter(gradients, true, ax=axes[0])
plot.alignment({name: info for name, (_, info) in results.items()}, ax=axes[1])

# EP is off whatever the nudge, because its response goes through the Jacobian and the gradient needs the transpose: the
# bias is $-2 J^{-1} A\,\delta$ with $A$ the antisymmetric part. AsymEP turns the nudged dynamics into the transposed one,
# and its error is that of the finite nudge alone: of order $N$ with $N$ nudges around a circle in the complex plane.

betas = jnp.array([0.1, 0.05, 0.025])
size = jnp.linalg.norm(jfu.ravel_pytree(true)[0])


def error(estimator):
    return float(jnp.linalg.norm(jfu.ravel_pytree(gradient(estimator)[0])[0] - jfu.ravel_pytree(true)[0]) / size)


figure, axis = plt.subplots(figsize=(6.5, 4.4), layout="constrained")
for points, color in zip((1, 2, 4, 6), ("#c2410c", "#1d4ed8", "#047857", "#7c3aed"), strict=True):
    # An array in place of a number, so that the three nudges are one program.
    errors = [error(ep.AsymEP(ep.Cauchy(beta, points))) for beta in betas]
    order = jnp.log2(errors[1] / errors[2])
    print(f"N = {points}: errors {', '.join(f'{e:.1e}' for e in errors)}; observed order {order:.2f}")
    axis.loglog(betas, errors, "o-", color=color, label=f"AsymEP, N = {points}: order {order:.1f}")
plain = [error(ep.Cauchy(beta, 6)) for beta in betas]
axis.loglog(betas, plain, "s--", color="0.4", label="EP, N = 6")
axis.set_xlabel(r"nudge $|\beta|$")
axis.set_ylabel("relative error of the gradient")
axis.legend(frameon=False)
axis.grid(color="0.9")

# How asymmetric is the network? In the coordinates of the activities:

state = jax.tree.map(lambda leaf: leaf[0], results["EP, N = 6"][1].state)
F = lambda r, _: field.drive(params, r, x[0])
found = diagnostics.asymmetry(F, field.activation(state))
print(f"|A| = {float(found.antisymmetric):.3f}, |S| = {float(found.symmetric):.3f}")
