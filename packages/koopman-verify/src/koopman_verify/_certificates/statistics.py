r"""One-sided confidence bounds for a ratio of two means, $E[n]/E[d]$, from independent pairs $(n_m, d_m) \ge 0$.

The ratio is at least $c$ exactly if $E[n - cd] \ge 0$, so that every bound for the mean of one variable gives one for the
ratio (Fieller's device): the upper bound is the $c$ from which on the mean of $n - cd$ is significantly negative. No
linearisation is needed, and a denominator that is not significantly positive gives an infinite bound by itself.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import scipy.special
from jaxtyping import Array, Bool, Float


_STEPS = 60  # of the search for a bound: first to bracket it, then halvings
_FADES = 3  # times its variance is that of the difference, from where on the skewness of a part counts less
_FARTHEST = 2.0**14  # in widths of the interval at the ratio itself: beyond it there is no upper bound


class Moments(eqx.Module):
    """Means and central moments of the pairs, each `[k]`, and what the largest of them are."""

    n: Float[Array, " k"]
    d: Float[Array, " k"]
    second: Float[Array, "3 k"]  # nn, nd, dd
    third: Float[Array, "4 k"]  # nnn, nnd, ndd, ddd
    largest: Float[Array, "2 k"]
    num: int = eqx.field(static=True)

    @property
    def ratio(self) -> Float[Array, " k"]:
        return self.n / self.d

    def variance(self, c: Float[Array, " k"]) -> Float[Array, " k"]:
        """The unbiased variance of $n - cd$."""
        nn, nd, dd = self.second
        return jnp.maximum(nn - 2 * c * nd + c**2 * dd, 0) * (self.num / (self.num - 1))

    def spread(self) -> Float[Array, " k"]:
        """The standard error of the mean of $d$."""
        return jnp.sqrt(self.second[2] / (self.num - 1))

    def skewness(self, c: Float[Array, " k"]) -> Float[Array, " k"]:
        """The skewness of $n - cd$; zero where the variance is."""
        nnn, nnd, ndd, ddd = self.third
        var = self.variance(c)
        third = nnn - 3 * c * nnd + 3 * c**2 * ndd - c**3 * ddd
        return jnp.where(var > 0, third, 0) / jnp.where(var > 0, var, 1) ** 1.5

    def own_skewness(self) -> Float[Array, "2 k"]:
        """The skewness of $n$ and of $d$."""
        var, third = self.second[::2], self.third[::3]
        return jnp.where(var > 0, third, 0) / jnp.where(var > 0, var, 1) ** 1.5

    def effective(self) -> Float[Array, " k"]:
        r"""The number of samples that matter, $(\sum n)^2/\sum n^2$, the smaller of that of $n$ and that of $d$."""
        share = lambda mean, var: jnp.where(var > 0, mean**2 / (mean**2 + var), 1)
        return self.num * jnp.minimum(share(self.n, self.second[0]), share(self.d, self.second[2]))


def moments(n: Float[Array, "M k"], d: Float[Array, "M k"]) -> Moments:
    """Return the moments in two passes: the means first, so that nothing cancels."""
    mean_n, mean_d = jnp.mean(n, axis=0), jnp.mean(d, axis=0)
    a, b = n - mean_n[None], d - mean_d[None]
    mean = lambda *f: jnp.mean(math.prod(f[1:], start=f[0]), axis=0)
    return Moments(
        n=mean_n,
        d=mean_d,
        second=jnp.stack([mean(a, a), mean(a, b), mean(b, b)]),
        third=jnp.stack([mean(a, a, a), mean(a, a, b), mean(a, b, b), mean(b, b, b)]),
        largest=jnp.stack([jnp.max(n, axis=0), jnp.max(d, axis=0)]),
        num=len(n),
    )


def student_quantile(probability: float, num: int) -> float:
    """Return the quantile of Student's distribution for the mean of `num` samples."""
    return float(scipy.special.stdtrit(num - 1, probability))


def plain(m: Moments, miss: float) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Return Student's bounds `(lower, upper)`, which heavy right tails break: for comparison only."""
    q = student_quantile(1 - miss, m.num)
    return _both(m, lambda c, _: q * jnp.sqrt(m.variance(c) / m.num), m.d > q * m.spread())


def asymptotic(
    m: Moments, miss: float, inflation: Float[Array, " k"] | float = 1.0
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    r"""Return `(lower, upper)`, each missed with probability about `miss`: Student's bounds, corrected for skewness.

    Hall's transformation of the t statistic, $g(T) = T + \gamma T^2/(3\sqrt M) + \gamma^2T^3/(27M) +
    \gamma/(6\sqrt M)$, is close to normal to second order; it is inverted in closed form. Three things err on the safe
    side, because a sample underrates a heavy tail: the wider of the corrected and the plain bound is taken; the skewness
    is doubled; and it is that of $n - cd$ or that of $n$ (for the lower bound, of $cd$), whichever is larger, since in the
    difference the tails of both can cancel while each is missed by the sample. The second fades where the variance of the
    difference is more than three times that of $n$, that is, where $n$ hardly matters. The correction grows to a factor
    of four and stays there (left alone it would shrink again, where the expansion has lost its meaning).

    `inflation` multiplies the variance (for samples that are not quite independent).
    """
    q, root = student_quantile(1 - miss, m.num), math.sqrt(m.num)
    own_n, own_d = m.own_skewness()
    share = lambda part, whole: (
        jnp.where(part < whole / _FADES, _FADES * part / jnp.where(whole > 0, whole, 1), 1) ** 1.5
    )

    def width(c: Array, side: Array) -> Array:
        whole = m.variance(c)
        own = jnp.where(side > 0, own_n * share(m.second[0], whole), own_d * share(c**2 * m.second[2], whole))
        g = 2 * jnp.maximum(side * m.skewness(c), own) / root
        g = jnp.minimum(g, 1.12 / q)  # where the corrected quantile is largest
        safe = jnp.where(jnp.abs(g) > 1e-6, g, 1)
        # Upper limit: mean - (s/sqrt M) g^{-1}(-q); for the lower limit the variable changes its sign.
        inverse = 3 * (jnp.cbrt(1 + safe * (-q - g / 6)) - 1) / safe
        factor = jnp.where(jnp.abs(g) > 1e-6, jnp.maximum(-inverse, q), q)
        return factor * jnp.sqrt(inflation * whole / m.num)

    # From below the mean of a variable that is not negative is never underrated by its skewness.
    return _both(m, width, m.d > q * jnp.sqrt(inflation) * m.spread())


def trusted(m: Moments) -> Bool[Array, " k"]:
    """Say where the corrected bound may be believed: enough samples carry the means."""
    return m.effective() >= 25


def bernstein(
    m: Moments, miss: float, largest_n: Float[Array, " k"], largest_d: Float[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    r"""Return `(lower, upper)` for samples with $n\le$ `largest_n` and $d\le$ `largest_d`, valid at every sample size.

    The empirical Bernstein bound of Maurer and Pontil (arXiv:0907.3740, theorem 4) for $n - cd$, whose range is
    `largest_n` $+\ c\,$`largest_d`.
    """
    log = math.log(2 / miss)

    def width(c: Array, _: Array) -> Array:
        span = largest_n + c * largest_d
        return jnp.sqrt(2 * m.variance(c) * log / m.num) + 7 * span * log / (3 * (m.num - 1))

    slope = math.sqrt(2 * log) * m.spread() + 7 * largest_d * log / (3 * (m.num - 1))
    return _both(m, width, m.d > slope)


def _both(m: Moments, width: Callable[[Array, Array], Array], positive: Array) -> tuple[Array, Array]:
    """Return where the bound of the mean of $n - cd$ changes its sign, below and above the ratio of the means.

    `width(c, side)` is that of the upper (`side` 1) or the lower (-1) bound of the mean; `positive` says where the
    denominator is significantly positive, without which there is no upper bound. Both searches are one loop.
    """
    ratio, eps = m.ratio, float(jnp.finfo(m.n.dtype).eps)
    sides = jnp.array([1, -1], ratio.dtype)
    first = jnp.sqrt(m.variance(ratio) / m.num) + width(ratio, sides[0])
    scale = first / m.d + 8 * eps * ratio + float(jnp.finfo(m.n.dtype).tiny)
    steps = jnp.stack([scale, -ratio])

    def beyond(t: Array, step: Array, side: Array) -> Array:
        c = ratio + step * t
        return side * (m.n - c * m.d) + width(c, side) <= 0

    def search(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, found = state
        t = jnp.where(found, (low + high) / 2, jnp.minimum(2 * high, _FARTHEST))
        yes = jax.vmap(beyond)(t, steps, sides)
        return jnp.where(yes, low, t), jnp.where(yes | ~found, t, high), found | yes

    # Upwards nothing is known of how far; downwards it is zero at most, where the search of the lower bound ends.
    found = jnp.stack([jnp.zeros_like(positive), jnp.ones_like(positive)])
    start = jnp.where(found, 1, jnp.full_like(steps, 2.0**-5))
    _, ends, found = jax.lax.fori_loop(0, _STEPS, search, (jnp.zeros_like(steps), start, found))
    upper, lower = ratio + scale * ends[0], ratio * (1 - ends[1])
    return lower, jnp.where(positive & found[0] & jnp.isfinite(upper), upper, jnp.inf)


def decorrelation(series: Float[Array, "M k"]) -> Float[Array, " k"]:
    r"""Return the integrated autocorrelation time $1 + 2\sum_t\rho_t$ of each column, summed until it is 1/5 of the lag.

    ??? cite "Reference"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new algorithms*, 1997, section 3.
    """
    num = len(series)
    centred = series - jnp.mean(series, axis=0, keepdims=True)
    power = jnp.abs(jnp.fft.rfft(centred, n=2 * num, axis=0)) ** 2
    rho = jnp.fft.irfft(power, n=2 * num, axis=0)[:num]
    rho = rho / jnp.where(rho[:1] > 0, rho[:1], 1)
    times = 2 * jnp.cumsum(rho, axis=0) - 1
    enough = jnp.arange(num, dtype=rho.dtype)[:, None] >= 5 * times
    first = jnp.where(jnp.any(enough, axis=0), jnp.argmax(enough, axis=0), num - 1)
    return jnp.maximum(jnp.take_along_axis(times, first[None], axis=0)[0], 1)


def block_means(series: Float[Array, "M k"], block: int) -> Float[Array, "B k"]:
    """Return the means over consecutive blocks; what is left over at the end is dropped."""
    num = len(series) // block
    return jnp.mean(series[: num * block].reshape(num, block, -1), axis=1)


def neighbours(n: Float[Array, "B k"], d: Float[Array, "B k"]) -> Float[Array, " k"]:
    """Return the correlation of $n - Rd$ between one block and the next, at least zero."""
    z = n - jnp.mean(n, axis=0, keepdims=True) / jnp.mean(d, axis=0, keepdims=True) * d
    total = jnp.sum(z * z, axis=0)
    return jnp.clip(jnp.sum(z[1:] * z[:-1], axis=0) / jnp.where(total > 0, total, 1), 0, 1)
