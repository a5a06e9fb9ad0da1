import dataclasses
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .disc_maps import ConjugatedTwist, Gaps, Involution, Twist, default_slack, images, involution_through


@dataclasses.dataclass(frozen=True)
class Determination:
    r"""Two maps that fit the same snapshots, and what a modulus of continuity says about them.

    **Attributes:**

    - `involution`: fits the snapshots; spectrum $\{1, -1\}$.
    - `twist`: fits the snapshots too; spectrum the whole circle.
    - `mismatch`: the largest distance of a recorded `y` from the image under either map.
    - `required`: the largest $|y_i - y_j| / |x_i - x_j|$: no map with a smaller Lipschitz constant fits.
    - `lower`: a lower bound on the larger of the two maps' Lipschitz constants, from derivatives at sampled points.
    - `upper`: a proved upper bound on it (a product over the local twists, so mostly astronomic).
    - `modulus`: the Lipschitz constant that was given, or `None`.

    !!! Example

        ```python
        answer = adversary.determined(snapshots)
        print(answer.status, answer.required, answer.verdict)
        ```
    """

    involution: Involution
    twist: ConjugatedTwist
    mismatch: float
    required: float
    lower: float
    upper: float
    modulus: float | None

    @property
    def status(self) -> str:
        """One of four: "undetermined without a modulus", "undetermined", "contradicted" or "not decided"."""
        if self.modulus is None:
            return "undetermined without a modulus"
        if self.modulus < self.required:
            return "contradicted"
        return "undetermined" if self.upper <= self.modulus else "not decided"

    @property
    def verdict(self) -> str:
        """What the snapshots say about the spectrum, in words."""
        pair = "an area-preserving map with spectrum {1, -1} and one with spectrum the whole unit circle"
        status = self.status
        if self.modulus is None:
            return f"{status}: {pair} both fit the snapshots to {self.mismatch:.1e}"
        if status == "contradicted":
            return (
                f"contradicted: the snapshots alone need a Lipschitz constant of {self.required:.3g}, more than the "
                f"modulus {self.modulus:.3g}, so no such map fits"
            )
        if status == "undetermined":
            return (
                f"undetermined, even with the modulus {self.modulus:.3g}: {pair}, both with Lipschitz constants of at "
                f"most {self.upper:.4g}, fit the snapshots; take more, the modulus then bounds the error"
            )
        excluded = (
            f"the modulus {self.modulus:.3g} excludes this counterexample, whose Lipschitz constant is at least "
            f"{self.lower:.3g}"
            if self.lower > self.modulus
            else f"this counterexample has a Lipschitz constant between {self.lower:.3g} and {self.upper:.3g}, so the "
            f"modulus {self.modulus:.3g} may or may not exclude it"
        )
        return f"not decided: {excluded}; that proves nothing about other maps. Use a certificate based on the modulus"


def _required(x: np.ndarray, y: np.ndarray) -> float:
    worst = 0.0
    for j in range(1, len(x)):
        dx, dy = np.linalg.norm(x[:j] - x[j], axis=1), np.linalg.norm(y[:j] - y[j], axis=1)
        worst = max(worst, float(np.max(dy[dx > 0] / dx[dx > 0], initial=0.0)))
    return worst


def determined(
    snapshots: Any,
    modulus: int | float | None = None,
    *,
    key: PRNGKeyArray | None = None,
    slack: int | float | None = None,
    max_twists: int = 20_000,
) -> Determination:
    r"""Ask whether snapshots of an area-preserving disc map determine its Koopman spectrum. They do not.

    For any finitely many snapshots there is an involution $H^{-1} R_\pi H$ that fits them, and with a twist $F_1$ that
    vanishes at the radii $|H(x_j)|$ there is $H^{-1} F_1 H$, which fits them too: spectra $\{1, -1\}$ and the circle. Both
    are built and measured. Only a modulus of continuity can exclude them: the answer with a modulus compares it with
    what the snapshots need, and with the two maps.

    **Arguments:**

    - `snapshots`: [`koopman_verify.Snapshots`][] of the open unit disc, `[M, 2]`.
    - `modulus`: a Lipschitz constant that the true map is known to have, or `None`.
    - `key`, `slack`, `max_twists`: as in [`koopman_verify.adversary.involution_through`][]; a `slack` of `None` is
        $2^{-30}$, or 256 times the rounding unit if that is more.

    **Returns:** a [`koopman_verify.adversary.Determination`][].

    **Raises:** `ValueError` for points outside of the disc, or a `modulus` that is not positive.

    !!! Example

        ```python
        answer = adversary.determined(snapshots)
        answer.status  # "undetermined without a modulus"
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312. The construction is ours.
    """
    if modulus is not None and not modulus > 0:
        raise ValueError(f"`modulus` must be positive, or None; got {modulus}")
    modulus = None if modulus is None else float(modulus)
    x, y = snapshots.x, snapshots.y
    slack = default_slack(x.dtype) if slack is None else slack
    involution = involution_through(x, y, jr.key(0) if key is None else key, slack=slack, max_twists=max_twists)
    h = involution.conjugacy
    radii = np.linalg.norm(np.asarray(images(h, x), float), axis=1)
    bound = involution.lipschitz_bound()
    phi = Gaps.avoiding(radii, 1.0, inner=0.0, outer=1.0, dtype=x.dtype)
    if modulus is not None and bound < modulus:
        # The spectrum is the circle for every height, so the twist may be as gentle as the modulus asks.
        a = 0.99 * (modulus / bound - bound / modulus)
        scale = min(1.0, a / phi.shear())
        phi = Gaps(phi.knots, phi.heights * jnp.asarray(scale, x.dtype))
    twist = ConjugatedTwist(h, Twist(phi))
    off = float(np.linalg.norm(np.asarray(images(twist, x) - y, float), axis=1).max(initial=0.0))
    return Determination(
        involution,
        twist,
        max(off, float(involution.mismatch)),
        _required(np.asarray(x, float), np.asarray(y, float)),
        float(involution.lipschitz_estimate),
        max(bound, twist.lipschitz_bound()),
        modulus,
    )
