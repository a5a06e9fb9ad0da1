# # Dress one photograph in the colours of another
#
# Every pixel is a point in colour space. The transport plan between the two clouds says which colour each pixel should
# take: the mean of the colours that its mass goes to. With a small regularisation the plan is nearly a map, so the
# result keeps its contrast; a plan that is not converged would use the colours in the wrong proportions.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import ot_sns
from ot_sns import problems


jax.config.update("jax_enable_x64", True)

# Two photographs that come with scikit-learn, of which 1000 pixels each are drawn, at $\eta = 1200$.

named = problems.color_transfer(1000)
solution = ot_sns.solve(named.problem())
print(f"{int(solution.stats['num_steps'])} steps, marginal error {float(solution.stats['error']):.1e}")

# Sinkhorn is far from done after as many steps as anyone would wait for, one by one.

sinkhorn = ot_sns.solve(named.problem(), ot_sns.Sinkhorn(), max_steps=200, throw=False)
print(f"Sinkhorn: {int(sinkhorn.stats['num_steps'])} steps, marginal error {float(sinkhorn.stats['error']):.1e}")

# The plan is known at the sampled colours, the potential $g$ extends it to every colour $x$: its mass goes to $y_j$ in
# proportion to $\exp((g_j - |x - y_j|^2)/\varepsilon)$, which at a sampled colour is the plan's own row.


@jax.jit
def transported(x, y, g, epsilon):
    cost = jnp.sum((x[:, None] - y) ** 2, axis=-1)
    return jax.nn.softmax((g - cost) / epsilon, axis=1) @ y


def recolour(photograph, y, g):
    pixels = jnp.asarray(photograph.reshape(-1, 3) / 255)
    pieces = [transported(piece, y, g, solution.problem.epsilon) for piece in jnp.array_split(pixels, 20)]
    return np.concatenate(pieces).reshape(photograph.shape)


# The other way round needs no second solve: the potential $f$ extends the plan's columns.

assert named.images is not None
china, flower = (image[::2, ::2] for image in named.images)
x, y = jnp.asarray(named.x), jnp.asarray(named.y)

figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), layout="constrained")
axes[0, 0].imshow(china)
axes[0, 1].imshow(recolour(china, y, solution.g))
axes[1, 0].imshow(flower)
axes[1, 1].imshow(recolour(flower, x, solution.f))
axes[0, 0].set_title("photographs")
axes[0, 1].set_title("each in the other's colours")
for axis in axes.flat:
    axis.set_axis_off()
