import dataclasses
from fractions import Fraction
from math import factorial
from typing import Any

import numpy as np


def _phase(x: Fraction) -> float:
    """Return `x` modulo one, in (-1/2, 1/2], rounded once."""
    r = x - (x.numerator // x.denominator)
    return float(r - 1 if 2 * r > 1 else r)


@dataclasses.dataclass(frozen=True)
class LiouvilleTorus:
    r"""The skew product $F(x, y) = (x + a, y + \varphi(x))$ of the torus with a Liouville-type rotation.

    Here $a = \sum_{n \le J+1} 10^{-n!}$, $q_j = 10^{j!}$ and $\varphi_J(x) = \sum_{j \le J} c_j \cos(2\pi q_j x)$ with
    $c_j = |e^{2\pi i q_j a} - 1|$. For every $J$ the transfer function $\psi_J$ with $\psi_J(x + a) - \psi_J(x) =
    \varphi_J(x)$ is a trigonometric polynomial, so the Koopman operator has a full set of eigenfunctions
    $e^{2\pi i (k x + l y)} e^{-2\pi i l \psi_J(x)}$ with eigenvalues $e^{2\pi i k a}$. But $\|\psi_J\|_2 = \sqrt{J/2}$
    grows without bound while $\varphi_J$ converges faster than any precision can follow: for infinitely many terms no
    square-integrable transfer function exists. No finite number of values tells the two apart.

    Status: that there is no square-integrable transfer function is derived, since its coefficients would all have
    modulus one half. That there is no *measurable* eigenfunction with $l \ne 0$ needs an argument on lacunary series
    that is not repeated here; the system of the paper may be another one.

    The phases $q_j x$ are computed with exact rational numbers: double precision has none of their digits for $j \ge 3$.

    **Arguments:**

    - `num_terms`: $J$, from 1 to 4.

    **Raises:** `ValueError` for another `num_terms`.

    !!! Example

        ```python
        torus = adversary.LiouvilleTorus(3)
        torus.transfer_norms(), torus.tail_bounds(), torus.eigen_defect(1, 1)
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312, treats eigenfunctions of smooth systems on tori. The
        construction is ours.
    """

    num_terms: int

    def __post_init__(self):
        if not (isinstance(self.num_terms, int) and 1 <= self.num_terms <= 4):
            raise ValueError(f"`num_terms` must be an integer from 1 to 4; got {self.num_terms!r}")

    @property
    def rotation(self) -> Fraction:
        """The rotation $a$, exactly. It has one term more than the sum, so that no $q_j a$ is an integer."""
        return sum((Fraction(1, 10 ** factorial(n)) for n in range(1, self.num_terms + 2)), Fraction(0))

    @property
    def frequencies(self) -> tuple[int, ...]:
        """The frequencies $q_j$, exactly."""
        return tuple(10 ** factorial(j) for j in range(1, self.num_terms + 1))

    def small_divisors(self) -> np.ndarray:
        """Return $q_j a$ modulo one, `[J]`, each rounded once from the exact value."""
        return np.asarray([_phase(q * self.rotation) for q in self.frequencies])

    def amplitudes(self) -> np.ndarray:
        """Return $c_j = 2|\\sin(\\pi q_j a)|$, `[J]`."""
        return 2 * np.abs(np.sin(np.pi * self.small_divisors()))

    def tail_bounds(self) -> np.ndarray:
        r"""Return bounds on $\|\varphi_J - \varphi_j\|_\infty$ for $j = 0, \ldots, J - 1$, `[J]`."""
        return np.cumsum(self.amplitudes()[::-1])[::-1]

    def transfer_norms(self) -> np.ndarray:
        r"""Return $\|\psi_j\|_2$ for $j = 1, \ldots, J$, from the coefficients $\hat\varphi_q / (e^{2\pi i q a} - 1)$."""
        divisor = 2 * np.abs(np.sin(np.pi * self.small_divisors()))
        return np.sqrt(np.cumsum(2 * (0.5 * self.amplitudes() / divisor) ** 2))

    def phi(self, x: Any, *, num_terms: int | None = None) -> np.ndarray:
        r"""Return $\varphi_j(x)$.

        **Arguments:**

        - `x`: numbers or `fractions.Fraction`s, `[n]`. A float is taken as the number that it is.
        - `num_terms`: $j$; `None` is $J$.

        **Returns:** the values, `[n]`.
        """
        phase = self._phases(x)
        return np.cos(2 * np.pi * phase[:, :num_terms]) @ self.amplitudes()[:num_terms]

    def transfer(self, x: Any, *, num_terms: int | None = None) -> np.ndarray:
        r"""Return $\psi_j(x) = \sum_{i \le j} \pm\sin(2\pi q_i x - \pi q_i a)$.

        **Arguments:**

        - `x`, `num_terms`: as for [`koopman_verify.adversary.LiouvilleTorus.phi`][].

        **Returns:** the values, `[n]`.
        """
        alpha = self.small_divisors()
        wave = np.sign(alpha) * np.sin(2 * np.pi * self._phases(x) - np.pi * alpha)
        return wave[:, :num_terms].sum(axis=1)

    def eigenvalue(self, k: int) -> complex:
        r"""Return $e^{2\pi i k a}$, which every $l$ shares: $\varphi$ has mean zero."""
        return complex(np.exp(2j * np.pi * _phase(k * self.rotation)))

    def eigenfunction(self, k: int, l: int, x: Any, y: Any) -> np.ndarray:
        r"""Return $e^{2\pi i (k x + l y)} e^{-2\pi i l \psi_J(x)}$.

        **Arguments:**

        - `k`, `l`: integers.
        - `x`: numbers or `fractions.Fraction`s, `[n]`.
        - `y`: numbers `[n]`.

        **Returns:** the values, `[n]`.
        """
        first = np.asarray([_phase(k * Fraction(v)) for v in x])
        return np.exp(2j * np.pi * (first + l * (np.asarray(y, float) - self.transfer(x))))

    def eigen_defect(self, k: int, l: int, *, num_points: int = 256, seed: int = 0) -> float:
        r"""Return the largest measured $|g(F(x, y)) - \lambda g(x, y)|$ at random points, where $|g| = 1$.

        **Arguments:**

        - `k`, `l`: integers.
        - `num_points`, `seed`: of the sample.

        **Returns:** the defect; rounding, if the eigenfunction is one.
        """
        rng = np.random.default_rng(seed)
        x, y = [Fraction(v) for v in rng.random(num_points)], rng.random(num_points)
        ahead = self.eigenfunction(k, l, [v + self.rotation for v in x], y + self.phi(x))
        return float(np.max(np.abs(ahead - self.eigenvalue(k) * self.eigenfunction(k, l, x, y))))

    def _phases(self, x: Any) -> np.ndarray:
        return np.asarray([[_phase(q * Fraction(v)) for q in self.frequencies] for v in x])


@dataclasses.dataclass(frozen=True)
class CircleRotation:
    r"""The rotation of the circle by `turns`, whose spectrum jumps at every rational: a warning.

    Rotation by zero has spectrum $\{1\}$; by an irrational angle, however small, the whole circle. Yet where the angle
    is known exactly, the points $e^{2\pi i k a}$, $|k| \le n$, lie in the spectrum and fill it as $n$ grows: one limit,
    with verified error.

    **Arguments:**

    - `turns`: the angle in turns, as a `fractions.Fraction` or an integer; a float stands for an irrational number near
        it, and has to be marked as such.
    - `irrational`: whether the number is irrational.

    **Raises:** `TypeError` for a float that is not marked: every float is rational, and seldom meant as that.

    !!! Example

        ```python
        adversary.CircleRotation(Fraction(1, 3)).points(5)  # the three roots
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312.
    """

    turns: Fraction | float | int
    irrational: bool = False

    def __post_init__(self):
        if isinstance(self.turns, float) != self.irrational:
            raise TypeError(
                "`turns` must be a Fraction or an integer for a rational rotation, and a float with `irrational=True` "
                f"for another one; got {self.turns!r} with irrational={self.irrational}"
            )

    @property
    def spectrum(self) -> str:
        """The spectrum, in words."""
        if self.irrational:
            return "the whole unit circle"
        q = Fraction(self.turns).denominator
        return f"the {q} roots of z^{q} = 1"

    def points(self, num_modes: int) -> np.ndarray:
        r"""Return $e^{2\pi i k a}$ for $|k| \le n$: points of the spectrum, exact for a rational angle.

        **Arguments:**

        - `num_modes`: $n$.

        **Returns:** the points; each once if the angle is rational.
        """
        k = range(-num_modes, num_modes + 1)
        if self.irrational:
            return np.exp(2j * np.pi * np.asarray(k) * float(self.turns))
        phases = sorted({(j * Fraction(self.turns)) % 1 for j in k})
        return np.exp(2j * np.pi * np.asarray([float(p) for p in phases]))

    def error(self, num_modes: int) -> float:
        r"""Return the Hausdorff distance of these points and the spectrum.

        **Arguments:**

        - `num_modes`: $n$.

        **Returns:** the distance: half of the widest gap as a chord, for an irrational angle.
        """
        if self.irrational:
            phases = np.sort(np.mod(np.arange(-num_modes, num_modes + 1) * float(self.turns), 1.0))
            gap = np.max(np.diff(phases, append=phases[0] + 1))
            return float(2 * np.sin(0.5 * np.pi * min(gap, 1.0)))
        q = Fraction(self.turns).denominator
        all_roots = np.exp(2j * np.pi * np.arange(q) / q)
        return float(np.abs(all_roots[:, None] - self.points(num_modes)).min(axis=1).max())

    def distance_to_spectrum(self, z: Any) -> np.ndarray:
        """Return the distances from `z` to the spectrum."""
        z = np.asarray(z, complex)
        if self.irrational:
            return np.asarray(np.abs(np.abs(z) - 1))
        q = Fraction(self.turns).denominator
        nearest = np.exp(2j * np.pi * np.round(np.angle(z) * q / (2 * np.pi)) / q)
        return np.asarray(np.abs(z - nearest))
