import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .disc_paths import separated, twists_through


_plateau = 0.53
_edge = 0.95
circle = "the whole unit circle"
two_points = "the two points {1, -1}"


def _bump(s: Float[Array, "..."], plateau: float) -> Float[Array, "..."]:
    """Return 1 up to `plateau`, 0 from 1 on, and a fifth-degree polynomial between them: twice differentiable."""
    t = jnp.clip((1 - s) / (1 - plateau), 0, 1)
    return t**3 * (10 - 15 * t + 6 * t**2)


def _shear_norm(a: float) -> float:
    """Return the largest singular value of the shear [[1, 0], [a, 1]]."""
    return 0.5 * (a + float(np.hypot(a, 2.0)))


def _rotate(x: Float[Array, "2"], angle: Float[Array, ""]) -> Float[Array, "2"]:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * x[0] - s * x[1], s * x[0] + c * x[1]])


def _norm(x: Float[Array, "2"]) -> Float[Array, ""]:
    # The norm has no derivative at zero; where that is used, the functions of it are constant there.
    square = jnp.sum(x * x)
    return jnp.sqrt(jnp.where(square > 0, square, jnp.finfo(x.dtype).tiny))


def _to_circle(z: Complex[Array, "..."]) -> Float[Array, "..."]:
    return jnp.abs(jnp.abs(z) - 1)


def _to_two_points(z: Complex[Array, "..."]) -> Float[Array, "..."]:
    return jnp.minimum(jnp.abs(z - 1), jnp.abs(z + 1))


class Gaps(eqx.Module):
    r"""A profile $\phi(r)$ that vanishes at given radii and is a bump in every gap between two of them.

    It touches zero to third order, so that twists by it are twice differentiable, and agree with the rotation by $\pi$
    on snapshots of those radii to the last bit.

    **Arguments:**

    - `knots`: increasing radii `[K]`, at least two.
    - `heights`: the value on the middle of each gap, `[K - 1]`; a gap of height zero is left alone.
    """

    knots: Float[Array, " K"]
    heights: Float[Array, " K-1"]

    def __call__(self, r: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\phi(r)$."""
        i = jnp.clip(jnp.searchsorted(self.knots, r) - 1, 0, len(self.heights) - 1)
        left, width = self.knots[i], self.knots[i + 1] - self.knots[i]
        flat = width <= 0
        s = jnp.abs(2 * (r - left) / jnp.where(flat, 1, width) - 1)
        return jnp.where(flat, 0, self.heights[i] * _bump(s, _edge))

    def shear(self) -> float:
        r"""Return a bound on $\sup_r |r \phi'(r)|$."""
        knots, heights = np.asarray(self.knots, float), np.abs(np.asarray(self.heights, float))
        width = np.diff(knots)
        used = (heights > 0) & (width > 0)
        slope = 1.875 / (1 - _edge) * 2 * heights[used] / width[used]
        return float(np.max(knots[1:][used] * slope, initial=0.0))

    @classmethod
    def avoiding(cls, radii: Any, height: float, *, inner: float, outer: float, dtype: Any) -> "Gaps":
        """Return bumps of one height in every gap that `radii` leave between `inner` and `outer`."""
        radii = np.asarray(radii, float)
        knots = np.unique(np.concatenate([[inner, outer], radii[(radii > inner) & (radii < outer)]]))
        # A gap that rounding of the radii could bridge stays flat.
        wide = np.diff(knots) > 1e4 * float(jnp.finfo(dtype).eps) * outer
        return cls(jnp.asarray(knots, dtype), jnp.asarray(np.where(wide, height, 0.0), dtype))


class Twist(eqx.Module):
    r"""The area-preserving map $(r, \theta) \mapsto (r, \theta + \pi + \phi(r))$ of the unit disc.

    On functions $e^{ik\theta} g(r)$ its Koopman operator multiplies by $e^{ik(\pi + \phi(r))}$. If $\phi$ is continuous
    and not constant, these values cover arcs whose length grows with $|k|$: the spectrum is the whole unit circle,
    however small $\phi$ is.

    **Arguments:**

    - `phi`: the profile, from a radius (a scalar) to an angle; not constant.

    !!! Example

        ```python
        f = Twist(lambda r: 1.7 * r**2)
        f(jnp.array([0.5, 0.0])), f.spectrum, f.distance_to_spectrum(0.5 + 0j)
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312. The construction is ours.
    """

    phi: Callable[[Float[Array, ""]], Float[Array, ""]]

    def __call__(self, x: Float[Array, "2"]) -> Float[Array, "2"]:
        """Return the image of one point."""
        return -_rotate(x, self.phi(_norm(x)))

    @property
    def inverse(self) -> "Twist":
        """The inverse map, which is the twist by the opposite angle."""
        return Twist(ft.partial(_negative, self.phi))

    @property
    def spectrum(self) -> str:
        """The spectrum of the Koopman operator on $L^2$ of the disc, in words."""
        return circle

    def distance_to_spectrum(self, z: Complex[Array, "..."]) -> Float[Array, "..."]:
        """Return the exact distances from `z` to the spectrum."""
        return _to_circle(jnp.asarray(z))

    def lipschitz_bound(self) -> float:
        r"""Return an upper bound on the Lipschitz constant, infinite if the profile is not a [`koopman_verify.adversary.Gaps`][]."""
        return _shear_norm(self.phi.shear()) if isinstance(self.phi, Gaps) else float("inf")


def _negative(phi: Callable[[Float[Array, ""]], Float[Array, ""]], r: Float[Array, ""]) -> Float[Array, ""]:
    return -phi(r)


class Conjugacy(eqx.Module):
    r"""An area-preserving map $H$ of the disc, the composition of local twists.

    A local twist rotates about its centre by the angle $\pi\, b(|p - c|/\rho)$, with a twice differentiable bump $b$:
    it preserves the area, and is the identity outside of its ball. The twists are applied in order by one scan.

    **Attributes:**

    - `centres`, `radii`: of the balls, `[n, 2]` and `[n]`. A radius of zero is no twist.
    """

    centres: Float[Array, "n 2"]
    radii: Float[Array, " n"]

    def __call__(self, x: Float[Array, "2"]) -> Float[Array, "2"]:
        """Return $H(x)$."""
        return jax.lax.scan(_there, x, (self.centres, self.radii))[0]

    def inverse(self, x: Float[Array, "2"]) -> Float[Array, "2"]:
        """Return $H^{-1}(x)$."""
        return jax.lax.scan(_back, x, (self.centres, self.radii), reverse=True)[0]

    def lipschitz_bound(self) -> float:
        """Return a bound on the Lipschitz constants of the map and of its inverse: a product, so a crude one."""
        # |s b'(s)| <= max b' on the ramp, where s <= 1.
        one = _shear_norm(np.pi * 1.875 / (1 - _plateau))
        with np.errstate(over="ignore"):
            return float(np.float64(one) ** np.sum(np.asarray(self.radii) > 0))


def _local_twist(
    turns: int, p: Float[Array, "2"], ball: tuple[Float[Array, "2"], Float[Array, ""]]
) -> tuple[Float[Array, "2"], None]:
    centre, radius = ball
    arm = p - centre
    distance = _norm(arm)
    angle = turns * jnp.pi * _bump(distance / jnp.where(radius > 0, radius, 1), _plateau)
    return jnp.where(distance < radius, centre + _rotate(arm, angle), p), None


# One object each: `scan` remembers what it traced by the identity of its body.
_there, _back = ft.partial(_local_twist, 1), ft.partial(_local_twist, -1)


class ConjugatedTwist(eqx.Module):
    r"""The map $H^{-1} \circ F_1 \circ H$ with a twist $F_1$: its spectrum is that of the twist, the whole circle.

    **Attributes:**

    - `conjugacy`: $H$.
    - `twist`: $F_1$.
    """

    conjugacy: Conjugacy
    twist: Twist

    def __call__(self, x: Float[Array, "2"]) -> Float[Array, "2"]:
        """Return the image of one point."""
        return self.conjugacy.inverse(self.twist(self.conjugacy(x)))

    @property
    def inverse(self) -> "ConjugatedTwist":
        """The inverse map."""
        return ConjugatedTwist(self.conjugacy, self.twist.inverse)

    @property
    def spectrum(self) -> str:
        """The spectrum of the Koopman operator on $L^2$ of the disc, in words."""
        return circle

    def distance_to_spectrum(self, z: Complex[Array, "..."]) -> Float[Array, "..."]:
        """Return the exact distances from `z` to the spectrum."""
        return _to_circle(jnp.asarray(z))

    def lipschitz_bound(self) -> float:
        """Return an upper bound on the Lipschitz constant (a product, so a crude one)."""
        return self.conjugacy.lipschitz_bound() ** 2 * self.twist.lipschitz_bound()


class Involution(eqx.Module):
    r"""The area-preserving map $F_0 = H^{-1} \circ R_\pi \circ H$ of the disc: applied twice, it is the identity.

    So its Koopman operator $K$ has $K^2 = I$, and the spectrum is $\{1, -1\}$: at Hausdorff distance $\sqrt 2$ from the
    circle. [`koopman_verify.adversary.involution_through`][] makes one that agrees with given snapshots.

    **Attributes:**

    - `conjugacy`: $H$.
    - `mismatch`: the largest measured $|F_0(x_j) - y_j|$ over the snapshots as given.
    - `lipschitz_estimate`: the largest $\|DF_0\|$ at sampled points: a lower bound on the Lipschitz constant.
    """

    conjugacy: Conjugacy
    mismatch: Float[Array, ""]
    lipschitz_estimate: Float[Array, ""]

    def __call__(self, x: Float[Array, "2"]) -> Float[Array, "2"]:
        """Return the image of one point."""
        return self.conjugacy.inverse(-self.conjugacy(x))

    @property
    def inverse(self) -> "Involution":
        """The inverse map, which is the map."""
        return self

    @property
    def num_twists(self) -> int:
        """The number of local twists in $H$."""
        return int(np.count_nonzero(np.asarray(self.conjugacy.radii)))

    @property
    def spectrum(self) -> str:
        """The spectrum of the Koopman operator on $L^2$ of the disc, in words."""
        return two_points

    def distance_to_spectrum(self, z: Complex[Array, "..."]) -> Float[Array, "..."]:
        """Return the exact distances from `z` to the spectrum."""
        return _to_two_points(jnp.asarray(z))

    def lipschitz_bound(self) -> float:
        """Return an upper bound on the Lipschitz constant (a product, so a crude one)."""
        return self.conjugacy.lipschitz_bound() ** 2


def padded_conjugacy(centres: np.ndarray, radii: np.ndarray, dtype: Any) -> Conjugacy:
    """Return the twists, and empty ones up to a power of two, so that few shapes are compiled."""
    pad = next_power(len(radii)) - len(radii)
    return Conjugacy(
        jnp.asarray(np.pad(centres, ((0, pad), (0, 0))), dtype), jnp.asarray(np.pad(radii, (0, pad)), dtype)
    )


def next_power(n: int) -> int:
    """Return the smallest power of two that is at least `n` and 1."""
    return 1 << max(n - 1, 0).bit_length()


def default_slack(dtype: Any) -> float:
    """Return a precision of answers well above the rounding of `dtype`."""
    return max(2.0**-30, 256 * float(jnp.finfo(dtype).eps))


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """Return a NumPy generator whose stream the key decides."""
    data = jr.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data, np.uint32).ravel())


def disc_points(name: str, x: Any) -> np.ndarray:
    """Return `x` as floats `[m, 2]` in the open unit disc, or raise."""
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"`{name}` must be points of the plane, [m, 2]; got {list(x.shape)}")
    x = x.astype(float)
    if not np.all(np.isfinite(x)) or np.any(np.linalg.norm(x, axis=1) >= 1):
        raise ValueError(f"`{name}` must lie in the open unit disc; row {_outside(x)} does not")
    return x


def _outside(x: np.ndarray) -> int:
    return int(np.argmax(np.where(np.isfinite(x).all(axis=1), np.linalg.norm(x, axis=1), np.inf)))


@eqx.filter_jit
def images(f: Callable[[Float[Array, "2"]], Float[Array, "2"]], x: Float[Array, "m 2"]) -> Float[Array, "m 2"]:
    """Return the images of many points."""
    return jax.vmap(f)(x)


@eqx.filter_jit
def sampled_lipschitz(f: Callable[[Float[Array, "2"]], Float[Array, "2"]], x: Float[Array, "m 2"]) -> Float[Array, ""]:
    """Return the largest norm of the derivative at the points `x`: a lower bound on the Lipschitz constant."""
    return jnp.max(jnp.linalg.norm(jax.vmap(jax.jacfwd(f))(x), ord=2, axis=(1, 2)))


def involution_through(
    x: Any,
    y: Any,
    key: PRNGKeyArray,
    *,
    slack: int | float = 0.0,
    max_twists: int = 20_000,
    num_samples: int = 1024,
    num_tries: int = 4,
) -> Involution:
    r"""Return an area-preserving involution of the disc that fits finitely many snapshots.

    The spectrum of its Koopman operator is $\{1, -1\}$, wherever the snapshots came from: so no finite number of
    snapshots tells a map of the disc whose spectrum is the whole circle from one whose spectrum is two points. $H$ is
    built by carrying each $y_j$ to $-H(x_j)$ with local twists whose balls hold no other marked point. The construction
    runs on the host, and is the same for the same key.

    **Arguments:**

    - `x`, `y`: states and their successors, `[m, 2]`, in the open unit disc, all $2m$ points distinct.
    - `key`: for the random turns of the paths.
    - `slack`: by how much a recorded `y` may be moved where it equals another point, as along a trajectory. The answers
        of any measurement have finite precision; an exact involution cannot continue an orbit.
    - `max_twists`: the largest number of local twists.
    - `num_samples`: the number of points at which the derivative is sampled.
    - `num_tries`: how many constructions to compare, with other paths; the one that stretches least is returned.

    **Returns:** an [`koopman_verify.adversary.Involution`][], a map of one point `[2]`.

    **Raises:** `ValueError` for points outside of the disc, points that coincide, or more than `max_twists` twists.

    !!! Example

        ```python
        twist = adversary.Twist(lambda r: 1.7 * r**2)
        f = adversary.involution_through(x, jax.vmap(twist)(x), jr.key(0))
        f.mismatch, f.num_twists, f.lipschitz_estimate
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312, shows that such maps exist. The construction is ours.
    """
    dtype = jnp.result_type(float, *(a.dtype for a in (x, y) if isinstance(a, jax.Array)))
    x, y, slack = disc_points("x", x), disc_points("y", y), float(slack)
    if x.shape != y.shape:
        raise ValueError(f"`x` and `y` must have one shape; got {list(x.shape)} and {list(y.shape)}")
    if slack < 0 or 0 < slack < 64 * float(jnp.finfo(dtype).eps):
        raise ValueError(f"`slack` must be zero or at least 64 eps of {dtype}; got {slack}")
    if num_tries < 1 or num_samples < 2:
        raise ValueError(f"`num_tries` >= 1 and `num_samples` >= 2 are needed; got {num_tries} and {num_samples}")
    rng = generator(key)
    xs, ys = separated(x, y, slack, rng)
    kept = np.zeros((0, 2))
    best = Involution(Conjugacy(jnp.zeros((0, 2), dtype), jnp.zeros(0, dtype)), jnp.zeros(()), jnp.asarray(jnp.inf))
    for _ in range(num_tries):
        centres, radii = twists_through(xs, ys, rng, kept=kept, inner=0.0, outer=1.0, max_twists=max_twists)
        h = padded_conjugacy(centres, radii, dtype)
        constant = _sampled_constant(h, len(radii), rng, num_samples)
        if constant <= best.lipschitz_estimate:
            best = Involution(h, jnp.zeros((), dtype), constant)
    mismatch = np.linalg.norm(np.asarray(images(best, jnp.asarray(x, dtype)), float) - y, axis=1).max(initial=0.0)
    return Involution(best.conjugacy, jnp.asarray(mismatch, dtype), best.lipschitz_estimate)


def _sampled_constant(h: Conjugacy, num: int, rng: np.random.Generator, num_samples: int) -> Float[Array, ""]:
    centres, radii, dtype = np.asarray(h.centres, float), np.asarray(h.radii, float), h.radii.dtype
    sample = sample_disc(rng, num_samples)
    if num:
        # Half of the samples on the ramps of the bumps, where the map stretches. The balls are those of images under the
        # earlier twists, so the points are pulled back.
        i = rng.integers(num, size=num_samples // 2)
        ring = sample_disc(rng, len(i))
        ring *= ((0.6 + 0.35 * rng.random(len(i))) / np.linalg.norm(ring, axis=1))[:, None]
        local = centres[i] + radii[i, None] * ring
        sample[: len(i)] = np.asarray(images(h.inverse, jnp.asarray(local, dtype)))
    return sampled_lipschitz(Involution(h, jnp.zeros(()), jnp.zeros(())), jnp.asarray(sample, dtype))


def sample_disc(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return points drawn uniformly from the unit disc, `[num, 2]`."""
    r, t = np.sqrt(rng.random(num)), 2 * np.pi * rng.random(num)
    return np.stack([r * np.cos(t), r * np.sin(t)], axis=1)


def twist_vs_rotation(
    x: Any, *, height: int | float = 1.0, inner: int | float = 0.0, outer: int | float = 1.0
) -> tuple[Twist, Involution]:
    r"""Return a twist that agrees with the rotation by $\pi$ at finitely many points, and that rotation.

    The easy direction: the profile of the twist is a bump in each gap between the radii of the points. The spectra are
    the whole circle and $\{1, -1\}$.

    **Arguments:**

    - `x`: points at which the two maps must agree, `[m, 2]`, in the open unit disc.
    - `height`: the largest angle of the twist. However small it is, the spectrum is the circle.
    - `inner`, `outer`: the annulus in which the maps may differ.

    **Returns:** the [`koopman_verify.adversary.Twist`][] and the [`koopman_verify.adversary.Involution`][] with no local
    twist, which is the rotation.

    **Raises:** `ValueError` for points outside of the disc, a `height` of zero or more than $\pi$, or an empty annulus.

    !!! Example

        ```python
        twist, rotation = adversary.twist_vs_rotation(x)
        assert jnp.array_equal(jax.vmap(twist)(x), jax.vmap(rotation)(x))
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312. The construction is ours.
    """
    dtype = x.dtype if isinstance(x, jax.Array) else jnp.result_type(float)
    x, height, inner, outer = disc_points("x", x), float(height), float(inner), float(outer)
    if not 0 < height <= np.pi:
        raise ValueError(f"`height` must lie in (0, pi]; got {height}")
    if not 0 <= inner < outer <= 1:
        raise ValueError(f"`inner` and `outer` must satisfy 0 <= inner < outer <= 1; got {inner} and {outer}")
    phi = Gaps.avoiding(np.linalg.norm(x, axis=1), height, inner=inner, outer=outer, dtype=dtype)
    if not np.any(np.asarray(phi.heights)):
        raise ValueError(f"the radii of `x` leave no gap between {inner} and {outer} that {dtype} resolves")
    identity = Conjugacy(jnp.zeros((0, 2), dtype), jnp.zeros((0,), dtype))
    rotation = Involution(identity, jnp.zeros((), dtype), jnp.ones((), dtype))
    return Twist(phi), rotation
