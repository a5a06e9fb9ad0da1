import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .disc_maps import (
    ConjugatedTwist,
    Gaps,
    Twist,
    default_slack,
    disc_points,
    generator,
    images,
    next_power,
    padded_conjugacy,
    twist_vs_rotation,
)
from .disc_paths import separated, twists_through


QueryMap: TypeAlias = Callable[[Any], np.ndarray]


class QueryBudgetError(RuntimeError):
    """Raised inside a black box that asks for more images than its budget.

    !!! Example

        ```python
        try:
            images = query_map(points)
        except adversary.QueryBudgetError:
            return ()
        ```
    """


def hausdorff_to_circle(points: Any, *, num_angles: int = 4096) -> float:
    r"""Return the Hausdorff distance of finitely many complex numbers and the unit circle.

    **Arguments:**

    - `points`: complex numbers, of any shape.
    - `num_angles`: the grid on which the largest distance from the circle to the points is taken.

    **Returns:** the distance, not too large by more than $\pi$ over `num_angles` and never too small; infinity for no
    points, or for points that are not finite.

    !!! Example

        ```python
        adversary.hausdorff_to_circle([1, -1])  # sqrt(2)
        ```
    """
    z = np.asarray(points, complex).ravel()
    if len(z) == 0 or not np.all(np.isfinite(z)):
        return float("inf")
    grid = np.exp(2j * np.pi * np.arange(num_angles) / num_angles)
    nearest = np.full(num_angles, np.inf)
    for part in np.array_split(z, 1 + len(z) // 512):
        nearest = np.minimum(nearest, np.abs(grid[:, None] - part).min(axis=1, initial=np.inf))
    return float(max(np.abs(np.abs(z) - 1).max(), nearest.max() + np.pi / num_angles))


def hausdorff_to_two_points(points: Any) -> float:
    r"""Return the Hausdorff distance of finitely many complex numbers and $\{1, -1\}$.

    **Arguments:**

    - `points`: complex numbers, of any shape.

    **Returns:** the distance; infinity for no points, or for points that are not finite.

    !!! Example

        ```python
        adversary.hausdorff_to_two_points([1, -1j])  # sqrt(2)
        ```
    """
    z = np.asarray(points, complex).ravel()
    if len(z) == 0 or not np.all(np.isfinite(z)):
        return float("inf")
    to = np.abs(z[:, None] - np.array([1.0, -1.0]))
    return float(max(to.min(axis=1).max(), to.min(axis=0).max()))


class Play(eqx.Module):
    r"""What [`koopman_verify.adversary.play`][] recorded.

    **Attributes:**

    - `budgets`: the query budget of each run of the black box, `[R]`, increasing.
    - `targets`: the spectrum of the map that each run was given, `"circle"` or `"{1, -1}"`, `R` of them.
    - `to_circle`, `to_two_points`: the Hausdorff distances of each run's output, `[R]`.
    - `num_queries`: the number of images that each run asked for, `[R]`.
    - `queries`, `answers`: every query and the answer that was given, `[Q, 2]`.
    - `map`: the last map, for which all the answers are true.
    - `mismatch`: the largest distance of an answer from the image under the last map.
    - `num_oscillations`: how often the output went from within the tolerance of one spectrum to within that of the other.
    - `tolerance`: how near counts as there.
    - `verdict`: what this shows, in words.

    !!! Example

        ```python
        game = adversary.play(algorithm)
        print(game.num_oscillations, game.verdict)
        ```
    """

    budgets: np.ndarray
    targets: tuple[str, ...] = eqx.field(static=True)
    to_circle: np.ndarray
    to_two_points: np.ndarray
    num_queries: np.ndarray
    queries: np.ndarray
    answers: np.ndarray
    map: ConjugatedTwist
    mismatch: float
    num_oscillations: int = eqx.field(static=True)
    tolerance: int | float = eqx.field(static=True)
    verdict: str = eqx.field(static=True)

    def oscillations(self) -> np.ndarray:
        """Return how often the output had changed sides after each run, `[R]`: the count per query budget."""
        last, count, counts = "", -1, []
        for target, right in zip(self.targets, self._right(), strict=True):
            if right and target != last:
                last, count = target, count + 1
            counts.append(max(count, 0))
        return np.asarray(counts, int)

    def _right(self) -> np.ndarray:
        circle = np.asarray([t == "circle" for t in self.targets], bool)
        return np.where(circle, self.to_circle, self.to_two_points) < self.tolerance


class _System:
    """The map that the black box sees: the rotation by pi, changed in one annulus after another."""

    def __init__(self, rng: np.random.Generator, height: float, slack: float, max_twists: int):
        self.rng, self.height, self.slack, self.max_twists = rng, height, slack, max_twists
        self.dtype = jnp.result_type(float)
        self.queries, self.answers = np.zeros((0, 2)), np.zeros((0, 2))
        self.centres, self.radii = np.zeros((0, 2)), np.zeros(0)
        self.phi = Gaps(jnp.asarray([0.0, 1.0]), jnp.asarray([0.0]))

    def map(self) -> ConjugatedTwist:
        h = padded_conjugacy(self.centres, self.radii, self.dtype)
        more = next_power(len(self.phi.heights)) - len(self.phi.heights)
        knots = jnp.pad(self.phi.knots, (0, more), mode="edge")
        phi = Gaps(knots, jnp.pad(self.phi.heights, (0, more)))
        return ConjugatedTwist(h, Twist(phi))

    def ask(self, f: ConjugatedTwist, x: np.ndarray) -> np.ndarray:
        y = self.images(f, x)
        self.queries, self.answers = np.concatenate([self.queries, x]), np.concatenate([self.answers, y])
        return y

    def images(self, f: ConjugatedTwist, x: np.ndarray) -> np.ndarray:
        # In blocks of one size: another shape may be compiled to other rounding, which the involutions amplify.
        blocks = np.pad(x, ((0, -len(x) % 512), (0, 0))).reshape(-1, 512, 2)
        values = [np.asarray(images(f, jnp.asarray(b, self.dtype)), float) for b in blocks]
        return np.concatenate([np.zeros((0, 2)), *values])[: len(x)]

    def twist(self, inner: float, outer: float) -> None:
        """Twist the annulus, except at the radii of earlier queries: no answer changes."""
        r = np.concatenate([np.linalg.norm(p, axis=1) for p in (self.queries, self.answers)])
        self.phi = Gaps.avoiding(r, self.height, inner=inner, outer=outer, dtype=self.dtype)

    def untwist(self, inner: float, outer: float) -> None:
        """Replace the twist of the annulus by an involution through all the answers given there."""
        r = np.linalg.norm(self.queries, axis=1)
        here = (r > inner) & (r < outer)
        x, y = self.queries[here], self.answers[here]
        turned = np.linalg.norm(x + y, axis=1) > 1e-15
        kept = np.unique(np.concatenate([x[~turned], -x[~turned]]), axis=0)
        if np.any(turned):
            xs, ys = separated(x[turned], y[turned], self.slack, self.rng)
            centres, radii = twists_through(
                xs, ys, self.rng, kept=kept, inner=inner, outer=outer, max_twists=self.max_twists
            )
            self.centres, self.radii = np.concatenate([self.centres, centres]), np.concatenate([self.radii, radii])
        self.phi = Gaps(jnp.asarray([0.0, 1.0]), jnp.asarray([0.0]))


def _asker(system: _System, budget: int, used: list[int]) -> QueryMap:
    f = system.map()

    def query(points: Any) -> np.ndarray:
        x = np.asarray(points, float)
        rows = disc_points("points", np.atleast_2d(x))
        used[0] += len(rows)
        if used[0] > budget:
            raise QueryBudgetError(f"the budget is {budget} queries, and {used[0]} were asked for")
        return system.ask(f, rows).reshape(x.shape)

    return query


def play(
    algorithm: Callable[[QueryMap, int], Any],
    *,
    max_oscillations: int = 2,
    budget: int = 64,
    growth: int | float = 1.5,
    max_budget: int = 1000,
    tolerance: int | float = 0.5,
    height: int | float = 1.2,
    slack: int | float | None = None,
    max_twists: int = 100_000,
    key: PRNGKeyArray | None = None,
) -> Play:
    r"""Make a black box that computes Koopman spectra of area-preserving disc maps from their values oscillate.

    The disc is cut into nested annuli, outermost first. In turn, (a) the map twists the next annulus, so that its
    spectrum is the whole circle, and the black box runs with growing budgets until its output is within `tolerance` of
    the circle; (b) the map on that annulus is replaced by an involution through every answer that was given there,
    which makes the spectrum $\{1, -1\}$, and the black box runs until it says so. No answer is ever taken back. Going on
    for ever, the maps converge to one of spectrum $\{1, -1\}$ at which the outputs do not converge: no sequence of
    algorithms is right on the whole class, unless it also knows a modulus of continuity.

    **Arguments:**

    - `algorithm`: called as `algorithm(query_map, budget)`. It may call `query_map` on points of the open disc, `[2]` or
        `[q, 2]`, as often and as adaptively as it likes up to `budget` points in all, and returns complex numbers.
    - `max_oscillations`: stop after this many.
    - `budget`, `growth`, `max_budget`: the first budget, the factor from one run to the next, and the largest. A black
        box that has not converged by then is reported as such; one that asks for more than its budget is stopped. One
        that computes for ever without asking cannot be.
    - `tolerance`: how near an output must come, less than $\sqrt 2 / 2$.
    - `height`: the angle of the twists, in $(0, \pi]$.
    - `slack`: the precision of the answers, which may move by so much where the black box follows an orbit; `None` is
        $2^{-30}$, or 256 times the rounding unit if that is more.
    - `max_twists`: the largest number of local twists of one involution.
    - `key`: for the random turns of the paths.

    **Returns:** a [`koopman_verify.adversary.Play`][].

    **Raises:** `ValueError` for settings out of range.

    !!! Example

        ```python
        game = adversary.play(lambda f, n: my_eigenvalues(x := points(n), f(x)))
        game.num_oscillations, game.verdict
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312, proves that no algorithm escapes. The construction is
        ours.
    """
    if not callable(algorithm):
        raise TypeError(f"`algorithm` must be a callable of a map and a budget; got {type(algorithm).__name__}")
    growth, tolerance, height = float(growth), float(tolerance), float(height)
    slack = default_slack(jnp.result_type(float)) if slack is None else float(slack)
    if not (budget >= 1 and growth > 1 and max_budget >= budget and max_oscillations >= 1):
        raise ValueError(
            "`budget`, `max_oscillations` >= 1, `growth` > 1 and `max_budget` >= `budget` are needed; got "
            f"{budget}, {max_oscillations}, {growth} and {max_budget}"
        )
    if not (0 < tolerance < np.sqrt(0.5) and 0 < height <= np.pi):
        raise ValueError(f"`tolerance` in (0, 0.707) and `height` in (0, pi] are needed; got {tolerance} and {height}")
    if slack < 64 * float(jnp.finfo(jnp.result_type(float)).eps):
        raise ValueError(f"`slack` must be at least 64 eps of {jnp.result_type(float)}; got {slack}")
    system = _System(generator(jr.key(0) if key is None else key), height, slack, max_twists)
    # The innermost part stays as it was: there every black box can see the rotation.
    edges = np.sqrt(np.linspace(0.99, 0.2, max_oscillations // 2 + 2))
    rows: list[tuple[int, str, int, float, float]] = []
    reached, why = 0, ""
    for stage in range(max_oscillations + 1):
        target = "circle" if stage % 2 == 0 else "{1, -1}"
        outer, inner = float(edges[stage // 2]), float(edges[stage // 2 + 1])
        (system.twist if target == "circle" else system.untwist)(inner, outer)
        why = f"its output did not come within {tolerance} of the spectrum, {target}, by a budget of {max_budget}"
        for n in _budgets(rows, budget, growth, max_budget):
            used = [0]
            try:
                output = algorithm(_asker(system, n, used), n)
            except QueryBudgetError as error:
                why, output = f"it was stopped: {error}", ()
            to_circle, to_two = hausdorff_to_circle(output), hausdorff_to_two_points(output)
            rows.append((n, target, min(used[0], n), to_circle, to_two))
            if (to_circle if target == "circle" else to_two) < tolerance:
                reached += 1
                break
        if reached <= stage:
            break
    return _recorded(system, rows, reached, max_oscillations, tolerance, why)


def _budgets(rows: list[Any], first: int, growth: float, largest: int) -> Iterator[int]:
    # The budgets grow across the stages too: the outputs are those of one sequence of algorithms.
    n = first if not rows else max(rows[-1][0] + 1, round(growth * rows[-1][0]))
    while n <= largest:
        yield n
        n = max(n + 1, round(growth * n))


def _recorded(system: _System, rows: list[Any], reached: int, wanted: int, tolerance: float, why: str) -> Play:
    f = system.map()
    mismatch = 0.0
    if len(system.queries):
        again = system.images(f, system.queries)
        mismatch = float(np.linalg.norm(again - system.answers, axis=1).max())
    count = max(reached - 1, 0)
    verdict = f"oscillated {count} times"
    if reached <= wanted:
        verdict += f", then did not converge: {why}"
    else:
        verdict += ": its answers follow the adversary, and the limit is undetermined without a modulus"
    budgets, targets, used, to_circle, to_two = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Play(
        np.asarray(budgets, int),
        tuple(targets),
        np.asarray(to_circle, float),
        np.asarray(to_two, float),
        np.asarray(used, int),
        system.queries,
        system.answers,
        f,
        mismatch,
        count,
        tolerance,
        verdict,
    )


@dataclasses.dataclass(frozen=True)
class Coin:
    r"""What [`koopman_verify.adversary.coin`][] counted.

    **Attributes:**

    - `num_games`: the number of games.
    - `num_right`: in how many the output was within the tolerance of the true spectrum.
    - `num_identical`: in how many both maps gave the same answers, to the last bit, and so the same output.
    - `verdict`: what this shows, in words.

    !!! Example

        ```python
        coin = adversary.coin(algorithm, jr.key(0))
        print(coin.rate, coin.standard_error, coin.verdict)
        ```
    """

    num_games: int
    num_right: int
    num_identical: int

    @property
    def rate(self) -> float:
        """The share of games in which the output was right."""
        return self.num_right / self.num_games

    @property
    def standard_error(self) -> float:
        r"""The standard deviation of `rate` for a success probability of one half, $1/(2\sqrt n)$."""
        return float(0.5 / np.sqrt(self.num_games))

    @property
    def verdict(self) -> str:
        """What this shows, in words."""
        same = "both maps agreed on every query" if self.num_identical == self.num_games else "the maps were told apart"
        return (
            f"right in {self.num_right} of {self.num_games} games ({self.rate:.2f}); {same}; no more than 0.5 expected"
        )


def coin(
    algorithm: Callable[[QueryMap, int, PRNGKeyArray], Any],
    key: PRNGKeyArray,
    num_games: int = 100,
    *,
    budget: int = 64,
    tolerance: int | float = 0.5,
    height: int | float = 1.2,
) -> Coin:
    r"""Estimate how often a randomised black box is right when a fair coin picks one of two maps that fit its queries.

    In each game the black box runs on the rotation by $\pi$. A twist is made that agrees with it at every query, and the
    coin picks the map; with the twist, the black box runs again, with the same key. Its queries, the answers and its
    output are the same, but the two spectra are $\sqrt 2$ apart: it is right for one of them at most, so with
    probability at most one half, whatever it does.

    **Arguments:**

    - `algorithm`: called as `algorithm(query_map, budget, key)`, and with the same key always the same.
    - `key`: for the coins and the black box.
    - `num_games`: the number of games.
    - `budget`, `tolerance`, `height`: as in [`koopman_verify.adversary.play`][].

    **Returns:** a [`koopman_verify.adversary.Coin`][].

    **Raises:** `ValueError` for settings out of range.

    !!! Example

        ```python
        adversary.coin(lambda f, n, key: my_eigenvalues(x := points(n, key), f(x)), jr.key(0)).rate
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312: probability at most 1/2 for randomised algorithms.
    """
    tolerance, height = float(tolerance), float(height)
    if num_games < 1 or budget < 1:
        raise ValueError(f"`num_games` and `budget` must be at least 1; got {num_games} and {budget}")
    if not 0 < tolerance < np.sqrt(0.5):
        raise ValueError(f"`tolerance` must lie in (0, 0.707); got {tolerance}")
    heads = np.asarray(jr.bernoulli(jr.fold_in(key, 0), 0.5, (num_games,)))
    right = identical = 0
    for game in range(num_games):
        one = jr.fold_in(jr.fold_in(key, 1), game)
        system = _System(generator(one), height, 2.0**-30, 0)
        first = _run(algorithm, system, budget, one)
        queries, answers = system.queries, system.answers
        other = _System(generator(one), height, 2.0**-30, 0)
        other.phi = twist_vs_rotation(queries, height=height)[0].phi  # pyright: ignore[reportAttributeAccessIssue]
        second = _run(algorithm, other, budget, one)
        same = np.array_equal(queries, other.queries) and np.array_equal(answers, other.answers)
        identical += int(same and np.array_equal(first, second))
        right += int(
            hausdorff_to_circle(second) < tolerance if heads[game] else hausdorff_to_two_points(first) < tolerance
        )
    return Coin(num_games, right, identical)


def _run(algorithm: Callable[..., Any], system: _System, budget: int, key: PRNGKeyArray) -> np.ndarray:
    try:
        return np.asarray(algorithm(_asker(system, budget, [0]), budget, key), complex).ravel()
    except QueryBudgetError:
        return np.zeros(0, complex)
