from typing import Literal, TypeAlias, get_args

import equinox as eqx


Target: TypeAlias = Literal["approximate point spectrum", "pseudospectrum", "eigenfunctions"]
Status: TypeAlias = Literal["derived", "reported", "unverified"]

_paper = "arXiv:2407.06312"
_data, _size, _width = "M -> infinity", "N -> infinity", "epsilon -> 0"
_disc = (
    "one limit is impossible: an involution and a twist of the disc agree on any finite data "
    "(`adversary.determined`), and their sets differ"
)


class Problem(eqx.Module):
    r"""What is asked about a Koopman operator, and what is known about its system.

    **Arguments:**

    - `target`: `"approximate point spectrum"`, `"pseudospectrum"` (the approximate point $\varepsilon$-pseudospectrum
        for a fixed $\varepsilon$) or `"eigenfunctions"` (those that are not constant, and the point part).
    - `measure_preserving`: whether the system is known to preserve the measure.
    - `modulus`: whether a modulus of continuity of the map is known.
    - `exact`: whether the inner products of the dictionary are known exactly, so that no limit of data is needed.
    - `rkhs`: whether the operator acts on a reproducing kernel Hilbert space instead of $L^2$.
    - `finite_data`: whether all that there will ever be is a finite number of snapshots.

    **Raises:** `ValueError` for another `target`.

    !!! Example

        ```python
        sci.classify(sci.Problem("approximate point spectrum", measure_preserving=True)).label  # "Sigma_2"
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312.
    """

    target: str = eqx.field(static=True, default="approximate point spectrum")
    measure_preserving: bool = eqx.field(static=True, default=False)
    modulus: bool = eqx.field(static=True, default=False)
    exact: bool = eqx.field(static=True, default=False)
    rkhs: bool = eqx.field(static=True, default=False)
    finite_data: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.target not in get_args(Target):
            raise ValueError(f"`target` must be one of {get_args(Target)}; got {self.target!r}")


class Tower(eqx.Module):
    r"""How many successive limits an answer needs, and how it comes.

    In a tower of height $k$ the answer is $\lim_{n_k} \cdots \lim_{n_1} \Gamma_{n_k, \ldots, n_1}$, in the Hausdorff
    metric. With the label $\Sigma_k$ the last limit comes from inside, within an error that is known; with $\Pi_k$ from
    outside; $\Delta_{k+1}$ says only that $k$ limits do.

    **Attributes:**

    - `problem`: the [`koopman_verify.sci.Problem`][].
    - `label`: such as `"Sigma_2"`.
    - `limits`: what goes to its limit, the outermost first.
    - `side`: from which side the outermost limit comes, `"inside"`, `"outside"` or `"unknown"`.
    - `lower_bound`: what is known about fewer limits.
    - `upper_status`, `lower_status`: of the two claims: `"derived"` (from the algorithms or the constructions of this
        package), `"reported"` (by the source, not checked here) or `"unverified"`.
    - `source`: where the claims come from.

    !!! Example

        ```python
        print(sci.classify(sci.Problem()).num_limits)
        ```
    """

    problem: Problem
    label: str = eqx.field(static=True)
    limits: tuple[str, ...] = eqx.field(static=True)
    side: Literal["inside", "outside", "unknown"] = eqx.field(static=True)
    lower_bound: str = eqx.field(static=True)
    upper_status: Status = eqx.field(static=True)
    lower_status: Status = eqx.field(static=True)
    source: str = eqx.field(static=True)

    @property
    def num_limits(self) -> int:
        """The number of limits $k$."""
        return len(self.limits)

    @property
    def error_control(self) -> bool:
        r"""Whether a computed answer comes with a verified error: one limit only, from a known side."""
        return self.num_limits == 1 and self.side != "unknown"

    @property
    def optimal(self) -> bool | None:
        """Whether fewer limits are known to be impossible, by derivation or report; `None` where that is open here."""
        return None if self.lower_status == "unverified" else True

    @property
    def verdict(self) -> str:
        """What may be said about the problem, in words."""
        p = self.problem
        if p.finite_data and not (p.modulus or p.exact or p.rkhs):
            return "undetermined without a modulus"
        if p.finite_data and self.error_control:
            return f"a verified part from {self.side}; all of it only as {self.limits[0]}"
        if p.finite_data:
            return f"undetermined: no error is known before {self.num_limits} limits are taken"
        many = "one limit" if self.num_limits == 1 else f"{self.num_limits} successive limits"
        verified = "with verified error" if self.error_control else "without an error bound at any finite stage"
        return f"{many} ({'; '.join(self.limits)}), {verified}"

    def __str__(self) -> str:
        known = [
            n for n in ("measure_preserving", "modulus", "exact", "rkhs", "finite_data") if getattr(self.problem, n)
        ]
        system = ", ".join(known).replace("_", " ") or "continuous, nonsingular"
        return f"{self.problem.target} [{system}]: {self.label}: {self.verdict}"


def _eigenfunctions(problem: Problem) -> Tower:
    return Tower(
        problem,
        "Delta_4",
        ("outer parameter -> limit", _size, _data),
        "unknown",
        "fewer than three are impossible in general, even for smooth measure-preserving systems on tori and for "
        "randomised algorithms (abstract of the first version)",
        "reported",
        "reported",
        _paper,
    )


def _lower(problem: Problem, num_limits: int) -> tuple[str, Status]:
    free = not (problem.modulus or problem.exact or problem.rkhs)
    if num_limits == 1 and (problem.exact or problem.rkhs):
        return "one limit is needed: a finite dictionary misses functions outside of its span", "derived"
    if num_limits == 1:
        return (
            "one limit is needed: a twist as gentle as the modulus asks vanishes at any finite data of the rotation by pi",
            "derived",
        )
    if num_limits == 2 and free:
        return _disc, "derived"
    if num_limits == 3:
        return _disc + "; that two are impossible is reported by a summary of the paper", "reported"
    return "whether one limit is enough is not verified here", "unverified"


def classify(problem: Problem) -> Tower:
    r"""Say how many limits the answer to a problem needs.

    The upper bounds follow from the algorithms: the matrices of a dictionary need the limit $M \to \infty$ of data,
    unless a modulus gives a computable error, the integrals are exact, or the space is a reproducing kernel Hilbert
    space; residuals then give the pseudospectrum from inside as $N \to \infty$; the approximate point spectrum is the
    intersection over $\varepsilon \to 0$, except for isometries of $L^2$, where the residual is the distance. The
    labels of the paper's own table could not be compared.

    **Arguments:**

    - `problem`: a [`koopman_verify.sci.Problem`][].

    **Returns:** a [`koopman_verify.sci.Tower`][].

    !!! Example

        ```python
        print(sci.classify(sci.Problem("pseudospectrum", modulus=True)))
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312; in reproducing kernel Hilbert spaces arXiv:2506.15782.
    """
    if problem.target == "eigenfunctions":
        return _eigenfunctions(problem)
    data = () if problem.modulus or problem.exact or problem.rkhs else (_data,)
    # In a reproducing kernel Hilbert space the operator of a measure-preserving map is no isometry.
    isometry = problem.measure_preserving and not problem.rkhs
    inner = (_size, *data)
    if problem.target == "pseudospectrum" or isometry:
        label, limits, side = f"Sigma_{len(inner)}", inner, "inside"
    else:
        label, limits, side = f"Pi_{1 + len(inner)}", (_width, *inner), "outside"
    lower, status = _lower(problem, len(limits))
    source = "arXiv:2506.15782" if problem.rkhs else _paper
    return Tower(problem, label, limits, side, lower, "derived", status, source)


def table() -> str:
    r"""Return the classification as a Markdown table: two targets, and four classes of systems.

    !!! Example

        ```python
        print(sci.table())
        ```

    ??? cite "Reference"

        *Limits and Powers of Koopman Learning*, arXiv:2407.06312.
    """
    classes = {
        "measure preserving, modulus": (True, True),
        "measure preserving": (True, False),
        "modulus": (False, True),
        "continuous, nonsingular": (False, False),
    }
    lines = ["| target | " + " | ".join(classes) + " |", "| --- " * (1 + len(classes)) + "|"]
    for target in get_args(Target):
        cells = []
        for preserving, modulus in classes.values():
            tower = classify(Problem(target, measure_preserving=preserving, modulus=modulus))
            error = ", verified" if tower.error_control else ""
            fewer = {"derived": "fewer: impossible", "reported": "fewer: impossible (reported)"}
            cells.append(
                f"{tower.label} ({tower.num_limits}{error}; {fewer.get(tower.lower_status, 'fewer: not verified')})"
            )
        lines.append(f"| {target} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
