# # Dress one photograph in the colours of another
#
# Every pixel is a point in colour space. The transport plan between the two clouds says which colour each pixel should
# take: the barycentre of the colours that its mass goes to. With a small regularisation the plan is nearly a map, so the
# result keeps its contrast; a plan that is not converged would leave the colours off by what its marginals are off.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import ot_sns
from sklearn.datasets import load_sample_images


jax.config.update("jax_enable_x64", True)

# Two photographs that come with scikit-learn, thinned to a few thousand pixels.

china, flower = (np.asarray(image[::16, ::16], float) / 255 for image in load_sample_images().images)
x = jnp.asarray(china.reshape(-1, 3))
y = jnp.asarray(flower.reshape(-1, 3))
print(f"{len(x)} colours onto {len(y)}")

# Squared distances between colours reach three, so this regularisation is a thousandth of the scale.

problem = ot_sns.EntropicOT(ot_sns.PointCloud(x, y), epsilon=3e-3)
solution = ot_sns.solve(problem, ot_sns.SparseNewton(tol=1e-9))
print(f"marginal error {float(solution.stats['error']):.1e} after {int(solution.stats['num_steps'])} steps")

# Each pixel takes the mean colour of where its mass went.

plan = solution.matrix()
moved = (plan @ y) / plan.sum(axis=1, keepdims=True)

figure, axes = plt.subplots(1, 3, figsize=(12, 3))
pictures = {"the picture": china, "the palette": flower, "transported": np.asarray(moved).reshape(china.shape)}
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture)
    axis.set_title(title)
    axis.axis("off")
