import numpy as np


# A local twist carries a point across its centre: the two ends lie at half the radius, inside the plateau of the bump,
# and the other marked points lie outside the ball by this factor.
_margin = 1.03
# The longest possible step often ends where the next one can only be short.
_shorten, _caution = 0.9, 1.0


def separated(x: np.ndarray, y: np.ndarray, slack: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return snapshots whose 2m points are distinct, with repeats dropped and some `y` moved by at most `slack`."""
    rows, keep, group = np.unique(x, axis=0, return_index=True, return_inverse=True)
    contradiction = np.linalg.norm(y - y[keep][np.ravel(group)], axis=1) > slack
    if np.any(contradiction):
        j = int(np.argmax(contradiction))
        raise ValueError(f"`x` holds one state twice with different successors (row {j} of `y`): no map fits")
    x, y = rows, y[keep].copy()
    near = slack / 8
    for j in range(len(y)):
        origin = y[j].copy()
        for _ in range(64):
            gap = np.linalg.norm(np.concatenate([x, np.delete(y, j, axis=0)]) - y[j], axis=1).min()
            if gap > near:
                break
            if slack == 0.0:
                raise ValueError(
                    f"the points of `x` and `y` must all be distinct, but the successor {origin.tolist()} occurs twice: "
                    "an involution would have to send it back. Give `slack`, by how much a recorded `y` may be moved"
                )
            turn = 2 * np.pi * rng.random()
            y[j] = origin + slack * (0.3 + 0.6 * rng.random()) * np.array([np.cos(turn), np.sin(turn)])
        else:
            raise ValueError(f"too many points within `slack` = {slack} of {origin.tolist()}: make it larger")
    return x, y


def _reach(here: np.ndarray, directions: np.ndarray, marked: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """Return the longest step along each direction whose ball holds no marked point and stays in the annulus."""
    q = marked - here
    along, square = directions @ q.T, np.sum(q * q, axis=1)
    a = _margin**2 - 0.25
    root = np.sqrt(along**2 + 4 * a * square)
    # Both forms of the positive root, each where it does not cancel.
    step = np.where(along > 0, 2 * square / np.where(along > 0, along + root, 1.0), (root - along) / (2 * a))
    step = step.min(axis=1, initial=np.inf)
    radial, norm = directions @ here, float(here @ here)
    b = 2 * outer + radial
    step = np.minimum(step, 2 * (outer**2 - norm) / (b + np.sqrt(np.maximum(b**2 - 3 * (outer**2 - norm), 0.0))))
    if inner > 0:
        c = radial - 2 * inner
        step = np.minimum(step, (c + np.sqrt(c**2 + 3 * (norm - inner**2))) / 1.5)
    return 0.999 * step


def _heading(here: np.ndarray, target: np.ndarray, polar: bool) -> np.ndarray:
    """Return the way still to go, `[..., 2]`: a straight line in the disc, an arc in an annulus."""
    if not polar:
        return target - here
    r, s = np.linalg.norm(here, axis=-1), float(np.linalg.norm(target))
    cross = here[..., 0] * target[1] - here[..., 1] * target[0]
    angle = np.arctan2(cross, here @ target)
    normal = here / r[..., None]
    tangent = np.stack([-normal[..., 1], normal[..., 0]], axis=-1)
    return (s - r)[..., None] * normal + (0.5 * (r + s) * angle)[..., None] * tangent


class TwistPath:
    """Collect local twists that carry marked points of a disc or an annulus past one another."""

    def __init__(self, marked: np.ndarray, inner: float, outer: float, rng: np.random.Generator, max_twists: int):
        self.marked, self.inner, self.outer = marked.copy(), inner, outer
        self.rng, self.max_twists = rng, max_twists
        self.centres: list[np.ndarray] = []
        self.radii: list[float] = []

    def _step(self, i: int, end: np.ndarray) -> None:
        here = self.marked[i]
        self.centres.append(0.5 * (here + end))
        self.radii.append(float(np.linalg.norm(end - here)))
        self.marked[i] = end
        if len(self.radii) > self.max_twists:
            raise ValueError(
                f"the conjugation needs more than `max_twists` = {self.max_twists} local twists for these snapshots: "
                "allow more, give fewer snapshots, or a larger `slack`"
            )

    def travel(self, i: int, target: np.ndarray) -> None:
        """Carry marked point `i` to `target`."""
        others = np.delete(self.marked, i, axis=0)
        polar = self.inner > 0
        fan = np.deg2rad(np.array([0.0, 12.0, -12.0, 28.0, -28.0, 46.0, -46.0, 66.0, -66.0, 84.0, -84.0]))
        while True:
            here = self.marked[i]
            straight = target - here
            distance = float(np.linalg.norm(straight))
            if distance <= 1e-16:
                return
            if _reach(here, straight[None] / distance, others, self.inner, self.outer)[0] >= distance:
                return self._step(i, target)
            way = _heading(here, target, polar)
            # A random turn, so that no symmetry of the data can hold the path up.
            angles = np.arctan2(way[1], way[0]) + fan + 0.1 * self.rng.standard_normal(len(fan))
            directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            step = np.minimum(_shorten * _reach(here, directions, others, self.inner, self.outer), distance)
            ends = here + step[:, None] * directions
            left = np.linalg.norm(_heading(ends, target, polar), axis=1)
            self._step(i, ends[np.argmin(left - _caution * self._room(ends, others))])

    def _room(self, ends: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the distances of `ends` to the nearest of `others` and to the boundary."""
        room = np.linalg.norm(others[None] - ends[:, None], axis=2).min(axis=1, initial=np.inf)
        r = np.linalg.norm(ends, axis=1)
        room = np.minimum(room, self.outer - r)
        return np.minimum(room, r - self.inner) if self.inner > 0 else room

    def clear(self, i: int, partner: int) -> None:
        """Move marked point `i` a little if another marked point sits at, or next to, the point opposite to it."""
        for _ in range(32):
            here = self.marked[i]
            rest = np.delete(self.marked, partner, axis=0)
            others = np.delete(self.marked, i, axis=0)
            spacing = np.linalg.norm(others - here, axis=1).min(initial=self.outer)
            if np.linalg.norm(rest + here, axis=1).min() >= 0.05 * spacing:
                return
            angles = 2 * np.pi * self.rng.random(16)
            directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            step = 0.6 * np.minimum(_reach(here, directions, others, self.inner, self.outer), 0.5 * self.outer)
            ends = here + step[:, None] * directions
            others = np.delete(self.marked, [i, partner], axis=0)
            room = np.linalg.norm(others[None] + ends[:, None], axis=2).min(axis=1, initial=np.inf)
            room = np.minimum(room, 2 * np.linalg.norm(ends, axis=1))
            self._step(i, ends[np.argmax(room)])


def twists_through(
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    *,
    kept: np.ndarray,
    inner: float,
    outer: float,
    max_twists: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres and radii of twists whose composition H has H(y_j) = -H(x_j) and fixes the points `kept`."""
    m = len(x)
    path = TwistPath(np.concatenate([x, y, kept]), inner, outer, rng, max_twists)
    for j in np.argsort(np.linalg.norm(x + y, axis=1)).tolist():
        if np.linalg.norm(path.marked[m + j] + path.marked[j]) <= 1e-15:
            continue
        path.clear(j, m + j)
        path.travel(m + j, -path.marked[j])
    return np.reshape(path.centres, (-1, 2)).astype(float), np.asarray(path.radii, float)
