# # Grokking, and the end of float32
#
# Addition modulo 23: a ReLU network sees 60 % of all pairs, and is to find the rest. With plain Adam it fits the training
# pairs, then scales its logits up until the softmax of each sample is exactly one: in float32 its loss is exactly zero, its
# gradient, too, and learning stops. This is softmax collapse (Prieto et al., arXiv 2501.04697).

import jax.random as jr
import matplotlib.pyplot as plt
import optax
from neuralcollapse import numerics


data = numerics.modular_addition(23, train_fraction=0.6, key=jr.key(0))
first, certain = numerics.collapse_onset("float32", 23)
print(f"{len(data.train_y)} pairs to learn from, {len(data.test_y)} to find")
print(f"float32 gives a sample up at a gap between logits of {first:.1f} to {certain:.1f}")

# Two ways around it. `perp_grad`, chained in front of the optimiser, takes out of each gradient the part along the weights,
# which only scales them up. `stablemax_cross_entropy`, in the place of the loss, has a softmax whose probabilities approach
# one slowly. Nothing else changes.

adam = optax.adam(1e-2, b2=0.98)
stablemax = numerics.stablemax_cross_entropy
settings = {
    "Adam": numerics.grok(data, adam, key=jr.key(1), num_steps=2000, record_every=20),
    "perpGrad + Adam": numerics.grok(
        data, optax.chain(numerics.perp_grad(), adam), key=jr.key(1), num_steps=2000, record_every=20
    ),
    "StableMax + Adam": numerics.grok(data, adam, key=jr.key(1), num_steps=2000, record_every=20, loss_fn=stablemax),
}
for name, run in settings.items():
    print(
        f"{name:17} train {100 * float(run.train_accuracy[-1]):5.1f} %  test {100 * float(run.test_accuracy[-1]):5.1f} %  "
        f"collapsed {100 * float(run.collapsed[-1]):5.1f} %"
    )

# Left: when do they find the pairs that they have not seen? Middle: what share of the training samples has a loss of exactly
# zero? Right: how far is the gradient a mere scaling of the weights? perpGrad finds the pairs within a few hundred steps.
# StableMax keeps every sample's gradient alive, but 2000 steps are not enough for it: its authors train for 80,000.

panels = {
    "test_accuracy": ("Unseen pairs", "test accuracy"),
    "collapsed": ("A loss of exactly zero", "share of training samples"),
    "alignment": ("Naive loss minimisation", "cosine of minus gradient and weights"),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for axis, (attribute, (title, label)) in zip(axes, panels.items(), strict=True):
    for name, run in settings.items():
        style = "--" if name.startswith("StableMax") else "-"  # curves at zero would hide one another
        axis.plot(run.steps, getattr(run, attribute), style, label=name if axis is axes[0] else None)
    axis.set(title=title, xlabel="training step", ylabel=label)
    axis.grid(alpha=0.3)
axes[0].set_ylim(-0.02, 1.02)
axes[1].set_ylim(-0.02, 1.02)
figure.legend(loc="outside lower center", ncols=3)
