# # Let points flow down the gradient
#
# The value of the transport problem is differentiable in the points. Following its negative gradient moves one cloud onto
# another, each point towards where its mass goes. No derivative passes through the iterations: by the envelope theorem
# $\partial V/\partial x_i = \sum_j P_{ij} \nabla_x c(x_i, y_j)$.

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import ot_sns


jax.config.update("jax_enable_x64", True)

# From one blob to two interleaved spirals.

r = np.random.default_rng(0)
angle = np.repeat(np.sqrt(np.linspace(0.02, 1, 150)) * 3 * np.pi, 2)
sign = np.tile([1.0, -1.0], 150)
y = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * (sign * angle / 9)[:, None])
x = jnp.asarray(0.25 * r.normal(size=(300, 2)))

# The previous potentials are a good start: `init` takes them. It holds no derivative.


def value(x, init):
    problem = ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=2e-3)
    solution = ot_sns.solve(problem, init=init)
    return solution.value, solution


step = eqx.filter_jit(eqx.filter_value_and_grad(value, has_aux=True))

# Weights are 1/300, so the gradient is scaled by 300. A step of 1/2 would take each point to its mean target at once.

clouds, counts = {0: x}, []
init = ot_sns.solve(ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=2e-3))
init = (init.f, init.g)
for k in range(1, 41):
    (_, solution), gradient = step(x, init)
    x = x - 0.06 * len(x) * gradient
    init = (solution.f, solution.g)
    counts.append(int(solution.stats["num_newton"]))
    if k in (5, 12, 40):
        clouds[k] = x
print(f"Newton steps a solve: {np.mean(counts):.1f} on average")

# Is the gradient right? Central differences along a random direction:

direction = jnp.asarray(r.normal(size=x.shape))
(_, solution), gradient = step(x, init)
above, below = (step(x + h * direction, init)[0][0] for h in (1e-5, -1e-5))
print(f"implicit    {float(jnp.sum(gradient * direction)):.9e}")
print(f"differences {float(above - below) / 2e-5:.9e}")

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for axis, (k, cloud) in zip(axes, clouds.items(), strict=True):
    axis.scatter(*y.T, s=5, color="0.8", linewidths=0)
    axis.scatter(*cloud.T, s=7, c=np.asarray(clouds[0] @ jnp.array([1.0, 1.0])), cmap="plasma", linewidths=0)
    axis.set(title=f"step {k}", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axis.set_axis_off()
