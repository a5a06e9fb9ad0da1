"""One adapter per method: how it is called, how its stopping rule is tightened, how its answer is read."""

import abc
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ot_sns.problems import NamedProblem


Setting = dict[str, Any]  # plain JSON: it travels to the process that measures memory


class Answer(NamedTuple):
    """What a method returned, in one form: the plan, and how many iterations it counts."""

    plan: np.ndarray
    iterations: int


class Method(abc.ABC):
    """A solver under test. The protocol calls `prepare` once per setting, then times the function that it returns."""

    name: str
    distribution: str
    compiles = False
    exact = False  # solves the linear programme: another problem, shown for scale

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    @abc.abstractmethod
    def rungs(self, problem: NamedProblem) -> list[list[Setting]]:
        """List settings from the loosest to the tightest; the settings of one rung are alternatives."""

    def futile(self, setting: Setting, error: float, problem: NamedProblem) -> bool:
        """Whether a run that ended with this error most likely ends alike under `setting`; asked of slow methods."""
        del setting, error, problem
        return False

    @abc.abstractmethod
    def prepare(self, problem: NamedProblem, setting: Setting) -> Callable[[], Any]:
        """Convert the arrays and return the call to be timed, which waits for its result."""

    @abc.abstractmethod
    def read(self, raw: Any, problem: NamedProblem) -> Answer:
        """Turn the call's result into an `Answer`, outside the timing."""


class Ours(Method):
    """`ot_sns.SparseNewton`, its defaults, the tolerance on the error that the table measures."""

    name, distribution, compiles = "ours", "ot-sns", True

    def rungs(self, problem):
        del problem
        return [[{"tol": tol}] for tol in (1e-9, 5e-10, 1e-10)]

    def prepare(self, problem, setting):
        import equinox as eqx
        import jax
        import jax.numpy as jnp
        import ot_sns

        @eqx.filter_jit
        def solve(cost, a, b, epsilon):
            entropic = ot_sns.EntropicOT(ot_sns.DenseCost(cost), a, b, epsilon=epsilon)
            solution = ot_sns.solve(entropic, ot_sns.SparseNewton(tol=setting["tol"]), throw=False)
            return solution.f, solution.g, solution.stats

        arrays = [jnp.asarray(v) for v in (problem.cost_matrix(), problem.a, problem.b, problem.epsilon)]
        return lambda: jax.block_until_ready(solve(*arrays))

    def read(self, raw, problem):
        f, g, stats = raw
        return Answer(_plan(np.asarray(f), np.asarray(g), problem), int(stats["num_steps"]))


class Regot(Method):
    """regot's SSNS (C++, MIT): its tolerance is the 2-norm of the dual gradient."""

    name, distribution = "regot-ssns", "regot"
    max_steps = 1000

    def rungs(self, problem):
        del problem
        return [[{"tol": tol}] for tol in (1e-8, 3e-9, 1e-9, 3e-10, 1e-10, 1e-11)]

    def futile(self, setting, error, problem):
        # The 2-norm at the last iterate, if the residual is spread evenly over all n + m entries.
        return setting["tol"] >= 2 * error / math.sqrt(sum(problem.shape))

    def prepare(self, problem, setting):
        import regot

        cost = np.asfortranarray(problem.cost_matrix())
        a, b, epsilon, tol = problem.a, problem.b, problem.epsilon, setting["tol"]
        return lambda: regot.sinkhorn_ssns(cost, a, b, epsilon, tol=tol, max_iter=self.max_steps)

    def read(self, raw, problem):
        del problem
        return Answer(np.asarray(raw.plan), int(raw.niter))


class Mdot(Method):
    """mdot_tnt (PyTorch, non-commercial licence: called, never copied): its tolerance follows from the exponent `p`."""

    name, distribution = "mdot-tnt", "mdot_tnt"

    def rungs(self, problem):
        # The documented rule: the last tolerance is min(H(a), H(b)) / γ^p with γ = 1/ε.
        entropy = min(float(-(w * np.log(w)).sum()) for w in (problem.a, problem.b))
        gamma = 1 / problem.epsilon
        targets = (8e-9, 4e-9, 2e-9, 1e-9, 5e-10, 2e-10, 5e-11)
        return [[{"p": math.log(entropy / target) / math.log(gamma)}] for target in targets]

    def prepare(self, problem, setting):
        import torch
        from mdot_tnt.mdot import mdot

        torch.set_num_threads(1)
        a, b, cost = (torch.from_numpy(np.ascontiguousarray(v)) for v in (problem.a, problem.b, problem.cost_matrix()))
        return lambda: mdot(a, b, cost, 1 / problem.epsilon, p=setting["p"])

    def read(self, raw, problem):
        u, v, gamma, steps, _ = raw
        del gamma  # if it stopped at a higher temperature, the plan below is far from the marginals: a failure
        epsilon = problem.epsilon
        return Answer(_plan(epsilon * u.numpy(), epsilon * v.numpy(), problem), int(steps))


class Ott(Method):
    """OTT-JAX's Sinkhorn, the best of its modes: plain, momentum from several starts, Anderson.

    All in log form: in kernel form OTT 0.6 forms the exponential (or a power of a given kernel) at every step, which
    measured the same as the log form (or five times slower) on LAP-500, with the same iterates and less range.
    """

    name, distribution, compiles = "ott", "ott-jax", True
    modes = ("momentum-50", "momentum-200", "momentum-1000", "plain", "anderson")

    def rungs(self, problem):
        del problem
        return [
            [{"mode": mode, "threshold": 0.99e-9, "max_iterations": most} for mode in self.modes]
            for most in (500, 3000, 20000)
        ]

    def prepare(self, problem, setting):
        import jax
        import jax.numpy as jnp
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import acceleration as acc, sinkhorn

        kind, _, start = setting["mode"].partition("-")
        solver = sinkhorn.Sinkhorn(
            threshold=setting["threshold"],
            max_iterations=setting["max_iterations"],
            momentum=acc.Momentum(start=int(start)) if kind == "momentum" else None,
            anderson=acc.AndersonAcceleration(memory=5, refresh_every=5) if kind == "anderson" else None,
        )

        @jax.jit
        def solve(cost, a, b, epsilon):
            out = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=epsilon), a, b))
            return out.f, out.g, out.n_iters

        arrays = [jnp.asarray(v) for v in (problem.cost_matrix(), problem.a, problem.b, problem.epsilon)]
        return lambda: jax.block_until_ready(solve(*arrays))

    def read(self, raw, problem):
        f, g, steps = raw
        return Answer(_plan(np.asarray(f), np.asarray(g), problem), int(steps))


class PotEmd(Method):
    """POT's network simplex: the exact plan, no regularisation."""

    name, distribution, exact = "pot-emd", "POT", True

    def rungs(self, problem):
        del problem
        return [[{}]]

    def prepare(self, problem, setting):
        del setting
        import ot

        cost = np.ascontiguousarray(problem.cost_matrix())
        return lambda: ot.emd(problem.a, problem.b, cost, numItermax=10_000_000)

    def read(self, raw, problem):
        del problem
        return Answer(np.asarray(raw), 0)


METHODS: dict[str, Method] = {method.name: method for method in (Ours(), Regot(), Mdot(), Ott(), PotEmd())}


def _plan(f: np.ndarray, g: np.ndarray, problem: NamedProblem) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp((f[:, None] + g[None] - problem.cost_matrix()) / problem.epsilon)
