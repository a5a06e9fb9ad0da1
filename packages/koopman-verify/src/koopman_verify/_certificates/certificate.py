from typing import Literal, TypeAlias

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Complex, Float


CertificateKind: TypeAlias = Literal["exact", "quadrature", "holdout", "training"]

# The order is that of the rows of `Certificate.refusals`.
REFUSALS = (
    "training: the residual on the data of the fit is no bound; pass snapshots that the fit has not seen",
    "nonfinite: the residual is not a number",
    "rounding: rounding errors may be larger than the residual itself",
    "concentrated: too few snapshots carry the mean, or its tail is too heavy for the interval",
    "unbounded: the norm of the eigenfunction is not significantly positive",
    "duplicates: snapshots of the hold-out set occur more than once, so they are not independent",
    "few: too few independent snapshots (at least 30), or blocks of a trajectory (at least 20)",
    "isometry: |1 - |lambda|| exceeds what a measure-preserving map allows, so the declaration is wrong",
)


class Certificate(eqx.Module):
    r"""What is known about $\lVert(K-\lambda)g\rVert/\lVert g\rVert$ for each pair, and where nothing can be said.

    The bound is one of the residual of the *given* function $g$ in $L^2(\omega)$; it implies
    $\sigma_{\inf}(K-\lambda)\le$ `upper`, that is, $\lambda$ belongs to the approximate point `upper`-pseudospectrum.
    Made by [`koopman_verify.certify`][].

    **Attributes:**

    - `eigenvalues`: $\lambda$, `[k]`.
    - `upper`, `lower`: bounds of the residual, rounding included, `[k]`. All of them hold together at `level`.
    - `estimate`: the estimate between them, `[k]`.
    - `rounding`: the allowance for rounding errors that is in the bounds, $\tau$, `[k]`.
    - `kind`: `"exact"`, `"quadrature"`, `"holdout"`, or `"training"`, which is never a certificate.
    - `level`: the confidence with which all bounds hold; one where nothing is random, zero where nothing is claimed.
    - `tol`: the residual that was asked for, if one was.
    - `refusals`: which of the reasons against a certificate hold, `[reasons, k]`.
    - `rigorous`: pairs whose bound holds at every sample size and does not rest on a large sample, `[k]`.
    - `trivial`: pairs whose function is constant: true, and worth nothing, `[k]`.
    - `outside`: the fraction of the successors outside of the box of the states; `None` without data.
    - `effective`: the number of snapshots (or blocks) that matter for each pair, `[k]`; `None` without data.
    - `evidence`: what the claim rests on, in words.

    !!! Example

        ```python
        certificate = koopman_verify.certify(pairs, holdout, tol=0.3)
        print(certificate)
        pairs[certificate.certified]
        ```
    """

    eigenvalues: Complex[Array, "*k"]
    estimate: Float[Array, "*k"]
    upper: Float[Array, "*k"]
    lower: Float[Array, "*k"]
    rounding: Float[Array, "*k"]
    refusals: Bool[Array, "reasons *k"]  # noqa: F821 (a named axis)
    rigorous: Bool[Array, "*k"]
    trivial: Bool[Array, "*k"]
    outside: Float[Array, ""] | None
    effective: Float[Array, "*k"] | None
    kind: CertificateKind = eqx.field(static=True)
    level: float = eqx.field(static=True)
    tol: float | None = eqx.field(static=True)
    evidence: tuple[str, ...] = eqx.field(static=True)

    @property
    def supported(self) -> Bool[Array, "*k"]:
        """Where the bounds may be relied on: no reason speaks against it."""
        return ~self.refusals.any(axis=0)

    @property
    def certified(self) -> Bool[Array, "*k"]:
        """Where the upper bound holds and, if `tol` was given, is at most that."""
        return self.supported if self.tol is None else self.supported & (self.upper <= self.tol)

    @property
    def refuted(self) -> Bool[Array, "*k"]:
        """Where the residual is shown to be above `tol`; nowhere if none was given."""
        return self.supported & (self.lower > (float("inf") if self.tol is None else self.tol))

    @property
    def status(self) -> np.ndarray:
        """`"certified"`, `"refuted"` (only with `tol`) or `"uncertifiable"` for each pair, an array of strings."""
        return np.where(self.certified, "certified", np.where(self.refuted, "refuted", "uncertifiable"))

    @property
    def relative_to_identity(self) -> Float[Array, "*k"]:
        r"""`upper` divided by $|1-\lambda|$.

        For a small time step every residual is small, because $K$ is close to the identity; this ratio is not fooled.
        """
        distance = abs(1 - self.eigenvalues)
        return self.upper / distance

    @property
    def near_identity(self) -> Bool[Array, "*k"]:
        r"""Where the bound is no less than $|1-\lambda|$: true, and what the eigenvalue 1 of the constants implies anyway.

        So it is for most pairs if the time step is small.
        """
        return self.upper >= abs(1 - self.eigenvalues)

    @property
    def reasons(self) -> list[tuple[str, ...]]:
        """The reasons of refusal for each pair; an empty tuple where there is none."""
        table = np.asarray(self.refusals).reshape(len(REFUSALS), -1)
        inside = np.atleast_1d(np.asarray(self.supported & ~self.certified & ~self.refuted))
        out = []
        for j in range(table.shape[1]):
            found = [text for text, holds in zip(REFUSALS, table[:, j], strict=True) if holds]
            undecided = [f"undecided: `tol` = {self.tol} is between the bounds"] if inside[j] else []
            out.append((*found, *undecided))
        return out

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the bounds rest on, and what was measured about it."""
        lines = list(self.evidence)
        if self.kind == "holdout":
            rigorous = np.atleast_1d(np.asarray(self.rigorous))
            lines.append(
                f"{int(rigorous.sum())} of {rigorous.size} bounds are rigorous at this sample size (empirical Bernstein); "
                "the others are large-sample bounds corrected for skewness"
            )
        if self.effective is not None:
            lines.append(f"measured: at least {float(np.min(self.effective)):.0f} effective samples for every pair")
        if self.outside is not None:
            lines.append(
                f"measured: {100 * float(self.outside):.2g} % of the successors lie outside of the box of the states"
            )
        if np.any(self.trivial):
            lines.append(f"measured: {int(np.sum(self.trivial))} pair(s) with a constant function, true of every map")
        near = int(np.sum(np.asarray(self.near_identity & ~self.trivial)))
        if near:
            lines.append(
                f"measured: {near} pair(s) with a bound of at least |1 - lambda|, which eigenvalue 1 alone implies: is the "
                "time step small?"
            )
        return tuple(lines)

    def __str__(self) -> str:
        how = (
            "deterministic" if self.level == 1 else "nothing is claimed" if self.level == 0 else f"level {self.level:g}"
        )
        goal = "" if self.tol is None else f", tol {self.tol:g}"
        lines = [f"residual bounds, kind {self.kind!r} ({how}{goal})"]
        lines.append(f"{'eigenvalue':>24}  {'modulus':>9}  {'residual':>8}  {'bound':>8}  status")
        row = lambda a: np.atleast_1d(np.asarray(a))
        marks = (self.status, self.trivial, self.near_identity)
        columns = (row(a) for a in (self.eigenvalues, self.estimate, self.upper, *marks))
        for z, estimate, upper, status, trivial, near, reasons in zip(*columns, self.reasons, strict=True):
            note = "".join(f" ({reason.partition(':')[0]})" for reason in reasons[:1])
            note += " [constant]" if trivial else " [near 1]" * bool(near)
            lines.append(
                f"{z.real:>+12.6f}{z.imag:>+11.6f}i  {abs(z):>9.6f}  {estimate:>8.2e}  {upper:>8.2e}  {status}{note}"
            )
        return "\n".join(lines)
