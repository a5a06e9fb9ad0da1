# # The derivative of a constrained minimiser
#
# The point of a pentagon nearest to a given point, found by SciPy. The derivative comes from the optimality conditions of
# the constraints that are active there, and the report says how far the nearest kink is.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from implicit_core import implicit


jax.config.update("jax_enable_x64", True)
angles = jnp.arange(5) * 2 * jnp.pi / 5 + 0.3
normals = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def distance(z, point):
    return 0.5 * jnp.sum((z - point) ** 2)


def outside(z, point):
    del point
    return normals @ z - 1.0  # at most zero inside the pentagon


def slsqp(point):
    inside = {"type": "ineq", "fun": lambda z: 1.0 - np.asarray(normals) @ z}
    fun = lambda z: 0.5 * np.sum((z - point) ** 2)
    return scipy.optimize.minimize(fun, np.zeros(2), jac=lambda z: z - point, constraints=inside, tol=1e-14).x


# A callback makes a host solver fit for `jit` and `vmap`; the decorator gives it derivatives.


@implicit.kkt(distance, ineq=outside)
def nearest(point):
    return jax.pure_callback(slsqp, jax.eval_shape(lambda: point), point, vmap_method="sequential")


# A point far off an edge moves its projection along the edge only; one that is off a corner does not move it at all.


@jax.jit
def look(point):
    jacobian = jax.jacobian(lambda point: nearest(point).x)(point)
    return jacobian, nearest.optimality.report(nearest(point), point)


for name, (angle, radius) in {"edge": (0.3, 2.0), "corner": (0.3 + np.pi / 5, 2.0), "inside": (0.0, 0.2)}.items():
    jacobian, report = look(radius * jnp.array([jnp.cos(angle), jnp.sin(angle)]))
    rounded = (np.round(np.asarray(jacobian), 3) + 0.0).tolist()
    print(f"{name:7}{rounded}  active: {report.num_active}  margin: {report.margin:.3f}")

# Along a circle around it: where the projection goes, how fast, and the margin to the next kink.

turns = np.linspace(0, 2 * np.pi, 121)
circle = 1.9 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
tangents = 1.9 * np.stack([-np.sin(turns), np.cos(turns)], axis=1)


@jax.jit
@jax.vmap
def travel(point, tangent):
    z, dz = jax.jvp(nearest, (point,), (tangent,))
    return z.x, jnp.linalg.norm(dz.x), nearest.optimality.report(z, point).margin


z, speed, margin = map(np.asarray, travel(circle, tangents))
zx, zy = z.T

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.plot(*circle.T, color="#94a3b8", lw=1)
for k in range(0, 120, 4):
    left.plot([circle[k, 0], zx[k]], [circle[k, 1], zy[k]], color="#94a3b8", lw=0.6)
points = left.scatter(zx, zy, c=speed, s=18, cmap="viridis", zorder=3)
figure.colorbar(points, ax=left, label="speed of the projection")
left.set(aspect="equal", title="The nearest point of a pentagon")
right.plot(turns, speed, color="#1d4ed8", label="speed of the projection, by the derivative")
moved = np.hypot(np.gradient(zx, turns), np.gradient(zy, turns))
right.plot(turns, moved, "x", color="#f59e0b", ms=4, label="by differences")
right.plot(turns, margin, color="#b91c1c", lw=1, label="margin to a change of the active set")
right.set(xlabel="angle of the given point", ylim=(0, 2.9))
right.legend(fontsize=8, loc="upper right")
right.grid(alpha=0.3)
