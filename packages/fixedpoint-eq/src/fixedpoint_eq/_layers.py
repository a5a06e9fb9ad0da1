from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from implicit_core.krylov import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray, Real

from ._adjoints import Implicit, OneStep
from ._anderson import Anderson
from ._reversible import Reversible, ReversibleAdjoint
from ._solution import Solution
from ._solve import solve
from ._solver import AbstractSolver


class DEQ(eqx.Module):
    r"""A layer whose output is an equilibrium: $z^\star = f(z^\star, x)$.

    **Arguments:**

    - `f`: any module or function `(z, x) -> z` of one example.
    - `z0`: the first guess, a pytree of arrays; or a function of `x` that gives it, such as a smaller network. It has no
        derivative unless the adjoint is [`fixedpoint_eq.Unrolled`][].
    - `solver`, `adjoint`, `max_steps`: see [`fixedpoint_eq.solve`][].

    Called on one example, and mapped over examples by `jax.vmap`, as all layers of Equinox; or on a batch as a whole with
    `batch_axis=0`, which is the same and cheaper where `f` is.

    !!! Example

        ```python
        cell = eqx.nn.Linear(64, 64, key=key)
        layer = DEQ(lambda z, x: jnp.tanh(cell(z) + x), jnp.zeros(64))
        z = layer(x)
        ```

    ??? cite "Reference"

        Bai, Kolter and Koltun, "Deep equilibrium models", arXiv:1909.01377.
    """

    f: Callable[[Any, Any], Any]
    z0: Any
    solver: AbstractSolver = Anderson()
    adjoint: optx.AbstractAdjoint = Implicit()
    max_steps: int = eqx.field(default=200, static=True)

    def solve(
        self,
        x: Any,
        z0: Any = None,
        *,
        batch_axis: Literal[0] | None = None,
        throw: bool = True,
        on_failure: Literal["keep", "zero", "nan"] = "keep",
    ) -> Solution:
        """Return the equilibrium with its status and statistics.

        **Arguments:**

        - `x`: the input.
        - `z0`: another first guess, for instance the equilibrium of an earlier input; `None` for that of the layer.
        - `batch_axis`: `0` if `x`, and `z0` if given, have a leading axis of examples.
        - `throw`: whether to raise if the solve does not succeed.
        - `on_failure`: the derivative of examples that failed, which `throw=False` lets pass: see
            [`fixedpoint_eq.solve`][].

        **Returns:**

        A [`fixedpoint_eq.Solution`][].
        """
        return solve(
            _map_of(self.f, batch_axis), _first_guess(self.z0, x, batch_axis) if z0 is None else z0, x,
            self.solver, self.adjoint,
            batch_axis=batch_axis, max_steps=self.max_steps, throw=throw, on_failure=on_failure,
        )  # fmt: skip

    def __call__(
        self,
        x: Any,
        z0: Any = None,
        *,
        batch_axis: Literal[0] | None = None,
        throw: bool = True,
        key: PRNGKeyArray | None = None,
    ) -> Any:
        """Return the equilibrium. The arguments are those of `solve`; `key` is ignored, for `equinox.nn.Sequential`."""
        del key
        return self.solve(x, z0, batch_axis=batch_axis, throw=throw).value

    def states(self, x: Any, at: Sequence[int], *, batch_axis: Literal[0] | None = None) -> Any:
        """Return states on the way to the equilibrium, for [`fixedpoint_eq.layers.fixed_point_correction`][].

        Each has the derivative of one application of `f`, whatever the adjoint of the layer.

        **Arguments:**

        - `x`, `batch_axis`: as for `solve`.
        - `at`: after how many steps, in ascending order. The solver starts again at each of them.

        **Returns:**

        The states along a new leading axis.
        """
        if not at or list(at) != sorted(set(at)) or at[0] < 1:
            raise ValueError(f"`at` must be positive and ascending; got {tuple(at)}")
        f = _map_of(self.f, batch_axis)
        z, out = _first_guess(self.z0, x, batch_axis), []
        for before, after in zip((0, *at[:-1]), at, strict=True):
            z = solve(
                f, z, x, self.solver, OneStep(), batch_axis=batch_axis, max_steps=after - before, throw=False
            ).value
            out.append(z)
        return jtu.tree_map(lambda *leaves: jnp.stack(leaves), *out)


class ReversibleDEQ(eqx.Module):
    r"""A layer of a fixed number of steps towards an equilibrium, with the exact gradient of those steps.

    Backpropagation undoes the steps of [`fixedpoint_eq.Reversible`][], so that its memory does not grow with their number,
    and there is no linear system. Called as [`fixedpoint_eq.layers.DEQ`][].

    **Arguments:**

    - `f`, `z0`: as for [`fixedpoint_eq.layers.DEQ`][]; here the first guess has a derivative.
    - `num_steps`: each evaluates `f` twice. Rounding grows by $(1-\beta)^{-2}$ in each that is undone, 25 times for
        `beta = 0.8`, so take few, above all in float32.
    - `beta`: of [`fixedpoint_eq.Reversible`][].

    **Raises:**

    `ValueError` for a `num_steps` below one or a `beta` outside of $(0, 1)$.

    !!! Example

        ```python
        layer = ReversibleDEQ(lambda z, x: jnp.tanh(cell(z) + x), jnp.zeros(64), num_steps=6)
        ```

    ??? cite "Reference"

        McCallum et al., "Reversible deep equilibrium models", arXiv:2509.12917.
    """

    f: Callable[[Any, Any], Any]
    z0: Any
    num_steps: int = eqx.field(default=6, static=True)
    beta: Real[Array, ""] | float = 0.8

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1; got {self.num_steps}")
        if isinstance(self.beta, int | float) and not 0 < self.beta < 1:
            raise ValueError(f"`beta` must be in (0, 1); got {self.beta}")

    def solve(self, x: Any, z0: Any = None, *, batch_axis: Literal[0] | None = None) -> Solution:
        """Return the state after the steps, and its residual; that it is no equilibrium yet does not raise.

        **Arguments:**

        - `x`, `z0`, `batch_axis`: as for [`fixedpoint_eq.layers.DEQ`][]`.solve`.

        **Returns:**

        A [`fixedpoint_eq.Solution`][], whose `stats["residual"]` says how far from an equilibrium it is.
        """
        return solve(
            _map_of(self.f, batch_axis), _first_guess(self.z0, x, batch_axis) if z0 is None else z0, x,
            Reversible(beta=self.beta, rtol=0.0, atol=0.0), ReversibleAdjoint(),
            batch_axis=batch_axis, max_steps=self.num_steps, throw=False,
        )  # fmt: skip

    def __call__(
        self, x: Any, z0: Any = None, *, batch_axis: Literal[0] | None = None, key: PRNGKeyArray | None = None
    ) -> Any:
        """Return the state after the steps. The arguments are those of `solve`; `key` is ignored."""
        del key
        return self.solve(x, z0, batch_axis=batch_axis).value


def _map_of(f: Callable[[Any, Any], Any], batch_axis: Literal[0] | None) -> Callable[[Any, Any], Any]:
    if batch_axis not in (None, 0):
        raise ValueError(f"`batch_axis` must be 0 or `None`; got {batch_axis!r}")
    return f if batch_axis is None else lambda z, x: jax.vmap(f)(z, x)


def _first_guess(z0: Any, x: Any, batch_axis: Literal[0] | None) -> Any:
    if callable(z0):
        return z0(x) if batch_axis is None else jax.vmap(z0)(x)
    if batch_axis is None:
        return z0
    size = jtu.tree_leaves(x)[0].shape[0]
    return jtu.tree_map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), z0)


class MonotoneDEQ(eqx.Module):
    r"""A layer $z = \operatorname{relu}(W z + U x + b)$ that has one equilibrium whatever its parameters.

    $W = (1 - m) I - P^\top P + Q - Q^\top$, so that the symmetric part of $I - W$ is at least $m$. The equilibrium is that
    of a splitting method whose map contracts in the 2-norm by a factor that $m$ and $L = \lVert I - W\rVert$ give,
    so it comes with a bound on its error. Called as [`fixedpoint_eq.layers.DEQ`][] on one example.

    **Arguments:**

    - `in_size`, `size`: of the input and of the state.
    - `m`: the margin, positive. The larger, the faster, and the less the layer can express.
    - `splitting`: `"peaceman-rachford"` solves with $(1 + \alpha) I - \alpha W$, which is factorised once a call; its
        factor is $\sqrt{1 - 2m / (L + m)}$, for a step of $\alpha = 1/L$. `"forward-backward"` merely multiplies by $W$;
        its factor is $\sqrt{1 - m^2/L^2}$, so it is slow where $L$ is large.
    - `solver`, `adjoint`, `max_steps`: see [`fixedpoint_eq.solve`][]. They work on the map of the splitting.
    - `key`: for the initial weights.

    **Raises:**

    `ValueError` for an `m` that is not positive or an unknown `splitting`.

    !!! Example

        ```python
        layer = MonotoneDEQ(10, 64, key=key)
        z = jax.vmap(layer)(x)
        layer.solve(x[0]).certificate.value  # bounds the distance from the equilibrium
        ```

    ??? cite "Reference"

        Winston and Kolter, "Monotone operator equilibrium networks", arXiv:2006.08591. The factor of Peaceman-Rachford:
        Giselsson and Boyd, "Linear convergence and metric selection for Douglas-Rachford splitting and ADMM".
    """

    P: Float[Array, "n n"]
    Q: Float[Array, "n n"]
    U: eqx.nn.Linear
    m: Real[Array, ""] | float
    splitting: Literal["forward-backward", "peaceman-rachford"] = eqx.field(static=True)
    solver: AbstractSolver
    adjoint: optx.AbstractAdjoint
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        size: int,
        m: Real[Array, ""] | float = 0.1,
        splitting: Literal["forward-backward", "peaceman-rachford"] = "peaceman-rachford",
        solver: AbstractSolver = Anderson(),
        adjoint: optx.AbstractAdjoint = Implicit(),
        max_steps: int = 500,
        *,
        key: PRNGKeyArray,
    ):
        if isinstance(m, int | float) and not m > 0:
            raise ValueError(f"`m` must be positive; got {m}")
        if splitting not in ("forward-backward", "peaceman-rachford"):
            raise ValueError(f'`splitting` must be "forward-backward" or "peaceman-rachford"; got {splitting!r}')
        p_key, q_key, u_key = jr.split(key, 3)
        # The spectral norm of a square Gaussian matrix is about 2 sqrt(n).
        scale = 0.5 / size**0.5
        self.P = scale * jr.normal(p_key, (size, size))
        self.Q = scale * jr.normal(q_key, (size, size))
        self.U = eqx.nn.Linear(in_size, size, key=u_key)
        self.m = m
        self.splitting = splitting
        self.solver = solver
        self.adjoint = adjoint
        self.max_steps = max_steps

    def weight(self) -> Float[Array, "n n"]:
        """Return $W$."""
        eye = jnp.eye(self.P.shape[0], dtype=self.P.dtype)
        return (1 - jnp.asarray(self.m, eye.dtype)) * eye - self.P.T @ self.P + self.Q - self.Q.T

    def solve(
        self, x: Float[Array, " inputs"], z0: Float[Array, " n"] | None = None, *, throw: bool = True
    ) -> Solution:
        """Return the equilibrium with its status, and a bound on its error as the `certificate`.

        **Arguments:**

        - `x`: the input of one example.
        - `z0`: a first guess.
        - `throw`: whether to raise if the solve does not succeed.

        **Returns:**

        A [`fixedpoint_eq.Solution`][].
        """
        W, b = self.weight(), self.U(x)
        eye = jnp.eye(b.size, dtype=b.dtype)
        m = jnp.asarray(self.m, b.dtype)
        # A constant to differentiation: the equilibrium does not depend on the length of the step.
        lipschitz = jnp.linalg.norm(stop_gradient(eye - W), 2)
        z0 = jnp.zeros_like(b) if z0 is None else z0
        if self.splitting == "forward-backward":
            step = stop_gradient(m) / lipschitz**2

            def forward_backward(z, args):
                W, b = args
                return jax.nn.relu(z - step * (z - W @ z - b))

            fn, factor = forward_backward, jnp.sqrt(jnp.maximum(1 - (m / lipschitz) ** 2, 0))
        else:
            step = 1 / lipschitz
            state = stop_gradient(lx.LU().init(lx.MatrixLinearOperator(eye + step * (eye - W)), {}))

            def peaceman_rachford(z, args):
                W, b = args
                on = jax.nn.relu(z)
                operator = lx.MatrixLinearOperator(eye + step * (eye - W))
                half = lx.linear_solve(operator, 2 * on - z + step * b, lx.LU(), state=state).value
                return 2 * half - 2 * on + z

            fn, factor = peaceman_rachford, jnp.sqrt(1 - 2 * m / (lipschitz + m))
            # At the equilibrium z the variable of the iteration is z - step * ((I - W) z - b).
            z0 = z0 - step * (z0 - stop_gradient(W) @ z0 - stop_gradient(b))
        solution = solve(
            fn, z0, (W, b), self.solver, self.adjoint,
            max_steps=self.max_steps, throw=throw, contraction=stop_gradient(factor),
        )  # fmt: skip
        if self.splitting == "peaceman-rachford":
            # Of two inputs to the activation the outputs are no further apart: the bound holds for them as well.
            solution = eqx.tree_at(lambda s: s.value, solution, jax.nn.relu(solution.value))
        return solution

    def __call__(
        self,
        x: Float[Array, " inputs"],
        z0: Float[Array, " n"] | None = None,
        *,
        throw: bool = True,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " n"]:
        """Return the equilibrium. The arguments are those of `solve`; `key` is ignored, for `equinox.nn.Sequential`."""
        del key
        return self.solve(x, z0, throw=throw).value


def jacobian_regulariser(
    f: Callable[[Any, Any], Any], z: Any, x: Any, *, key: PRNGKeyArray, draws: int = 1
) -> Float[Array, ""]:
    r"""Estimate $\lVert \partial f/\partial z\rVert_F^2 / n$, a penalty that keeps an equilibrium easy to find.

    By $\lVert J^\top v\rVert^2$ for Gaussian $v$, whose mean is the squared Frobenius norm: unbiased.

    **Arguments:**

    - `f`: `(z, x) -> z` of one example.
    - `z`: where, usually the equilibrium. The penalty has a derivative in it as in all else; pass it through
        `jax.lax.stop_gradient` for the cheaper penalty on `f` alone.
    - `x`: the input.
    - `key`: for the draws.
    - `draws`: the number of products whose mean is taken.

    **Returns:**

    A scalar.

    **Raises:**

    `ValueError` for a `draws` below one.

    !!! Example

        ```python
        loss = loss + 0.1 * jacobian_regulariser(layer.f, z, x, key=key)
        ```

    ??? cite "Reference"

        Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", arXiv:2106.14342.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}")
    out, pullback = jax.vjp(lambda z: f(z, x), z)
    leaves, treedef = jtu.tree_flatten(out)

    def one(key):
        keys = jr.split(key, len(leaves))
        noise = [jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        (product,) = pullback(treedef.unflatten(noise))
        squares = [jnp.sum(jnp.real(leaf * jnp.conj(leaf))) for leaf in jtu.tree_leaves(product)]
        return sum(squares[1:], squares[0])

    size = sum(leaf.size for leaf in leaves)
    return jnp.mean(jax.vmap(one)(jr.split(key, draws))) / size


def fixed_point_correction(loss: Callable[[Any], Array], states: Any, decay: Real[Array, ""] | float = 0.8) -> Array:
    r"""Return the loss of several states on the way, $\sum_k \gamma^{n-k-1} \ell(z_k)$: the last counts most.

    So the states before the equilibrium are trained to be good answers already.

    **Arguments:**

    - `loss`: a function of one state, usually that of the layer's output.
    - `states`: $n$ states along a leading axis, as from [`fixedpoint_eq.layers.DEQ`][]`.states`.
    - `decay`: $\gamma$, the weight of each state relative to the next one.

    **Returns:**

    The sum.

    !!! Example

        ```python
        loss = fixed_point_correction(lambda z: jnp.mean((head(z) - y) ** 2), layer.states(x, at=(5, 10, 20)))
        ```

    ??? cite "Reference"

        Bai, Geng, Savani and Kolter, "Deep equilibrium optical flow estimation", arXiv:2204.08442.
    """
    losses = jax.vmap(loss)(states)
    age = jnp.arange(losses.shape[0] - 1, -1, -1)
    return jnp.sum(losses * jnp.asarray(decay, losses.dtype) ** age.astype(losses.dtype))
