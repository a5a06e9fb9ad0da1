from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array

from ._adapter import LinearSolver, attach, choose, without_tracers
from ._certificate import Certificate
from ._custom_types import RealScalar
from ._gradient_error import gradient_error
from ._misc import stop_gradient
from ._probe import AdjointState, attach_probed


Z = TypeVar("Z")

_PSD = frozenset({lx.positive_semidefinite_tag})
_SYMMETRIC = frozenset({lx.symmetric_tag})


class ImplicitFunction(eqx.Module, Generic[Z]):
    r"""A solver whose result has the derivative of the equations that it solves: what the decorators return.

    It is called as the solver was, `solve(theta, *args) -> z`. The solver is run once and never differentiated:
    $\partial z / \partial\theta = -(\partial_1 F)^{-1} \partial_2 F$ at the point that it returned, where
    $F(z, \theta) = 0$ is `optimality`. So how it finds the point is its own affair: a loop of ours, an Optimistix or
    jaxopt call, or SciPy behind `jax.pure_callback`; outside of `jit` and `vmap` even plain NumPy. Forward mode,
    reverse mode, higher derivatives, `jit` and `vmap` all work, `vmap` if the solver's own pieces do.

    The derivative is in `theta`, any pytree, and in arrays that `optimality` captures by closure. The further
    arguments (a first guess, a tolerance) have none, because they do not appear in it.

    Made by [`implicit_core.implicit.root`][] and the other decorators.

    **Attributes:**

    - `solver`: the decorated function.
    - `optimality`: $F$, `(z, theta) -> array(s)` of the same structure as `z`.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][].
    - `tags`: Lineax tags of $\partial_1 F$.
    - `alpha`: a number with $|F(z,\theta) - F(z',\theta)| \ge \alpha |z - z'|$, or a function of `theta` that gives it.
    - `complete`: `(point, theta) -> z`, applied to what the solver returns.

    **Raises:**

    When called: `TypeError` if the solution is not of floating point, `ValueError` if `optimality` does not have the
    structure of the solution.
    """

    solver: Callable[..., Any]
    optimality: Any
    linear_solver: LinearSolver = None
    options: dict[str, Any] | None = None
    tags: frozenset[object] = eqx.field(default=frozenset(), static=True)
    alpha: RealScalar | Callable[[Any], RealScalar] | None = None
    complete: Callable[[Any, Any], Z] | None = None

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.solver

    # As with the function that was decorated: identity, which leaves `jax.jit(solve)` possible whatever it captures.
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __get__(self, instance: Any, owner: Any = None) -> Callable[..., Z]:
        return self if instance is None else jtu.Partial(self, instance)

    def __call__(self, theta: Any, *args: Any, adjoint_state: AdjointState | None = None, **kwargs: Any) -> Z:
        """Solve, and give the solution its derivative in `theta`.

        **Arguments:**

        - `theta`: what is differentiated, any pytree.
        - `args`, `kwargs`: passed to the solver; without derivative.
        - `adjoint_state`: see [`implicit_core.implicit.AdjointState`][].

        **Returns:**

        What the solver returns.
        """
        theta = jtu.tree_map(_as_array, theta)
        run = without_tracers(self.solver, theta, *args, **kwargs)
        z = run(*stop_gradient((theta, *args)), **stop_gradient(kwargs))
        if self.complete is not None:
            z = self.complete(z, stop_gradient(theta))
        z = stop_gradient(jtu.tree_map(_as_inexact, z))
        _check_square(self.optimality, z, theta)
        solver = choose(self.linear_solver, self.options, z, None, theta, self.tags)
        F = self.optimality
        if adjoint_state is not None:
            return attach_probed(F, z, theta, self.tags, solver, adjoint_state)
        return attach(lambda z, _, theta: F(z, theta), z, None, theta, self.tags, solver)

    def certify(self, z: Z, theta: Any, cotangent: Any, **constants: RealScalar | None) -> Certificate:
        """Bound, or estimate, the error of the gradient in `theta` that is due to an inexact solution `z`.

        **Arguments:**

        - `z`, `theta`: what the solver returned, and what it was called with.
        - `cotangent`: a loss, `z -> scalar`, whose gradient in `theta` is in question; or a cotangent, a pytree
            like `z`.
        - `constants`: `alpha`, `beta`, `gamma`, `smoothness` and `cross` of
            [`implicit_core.certify.gradient_error`][]. `alpha` is known already if the decorator was given
            `strong_convexity` or `contraction`.

        **Returns:**

        A [`implicit_core.certify.Certificate`][]: proved if the constants are known, else estimated.

        !!! Example

            ```python
            ridge.certify(w, lam, jnp.sum, beta=0.0, gamma=1.0, smoothness=0.0).value
            ```
        """
        theta = jtu.tree_map(_as_array, theta)
        z = jtu.tree_map(_as_inexact, z)
        solver = choose(self.linear_solver, self.options, z, None, theta, self.tags)
        if self.alpha is not None:
            constants = {"alpha": _at(self.alpha, theta), **constants}
        F = self.optimality
        return gradient_error(F, z, theta, cotangent, linear_solver=solver, tags=self.tags, **constants)


Decorator = Callable[[Callable[..., Any]], ImplicitFunction]


def decorator(optimality: Callable[[Any, Any], Any], **fields: Any) -> Decorator:
    """Return the decorator that gives a solver the derivative of the zero of `optimality`."""

    def decorate(solver: Callable[..., Any]) -> Any:
        return eqx.module_update_wrapper(ImplicitFunction(solver, optimality, **fields))

    return decorate


def root(
    F: Callable[[Z, Any], Z],
    *,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
    tags: frozenset[object] = frozenset(),
) -> Decorator:
    r"""Give the result of any solver the derivative of the root of `F`. A decorator.

    The decorated function is called as before, `solver(theta, *args) -> z`, and must return a point with
    $F(z, \theta) = 0$; see [`implicit_core.implicit.ImplicitFunction`][] for what it may be and what it becomes.

    **Arguments:**

    - `F`: the optimality map `(z, theta) -> array(s)` of the same structure as `z`.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][]; a function gets
        `(z, None, theta)`.
    - `tags`: Lineax tags of $\partial_1 F$, for instance `frozenset({lineax.symmetric_tag})`.

    **Returns:**

    A decorator.

    !!! Example

        ```python
        @root(lambda z, theta: jnp.cos(theta * z) - z)
        def solve(theta):
            return jax.lax.fori_loop(0, 100, lambda _, z: jnp.cos(theta * z), jnp.zeros_like(theta))

        jax.grad(solve)(0.5)  # -0.3421...
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (2) and (3).
    """
    return decorator(F, linear_solver=linear_solver, options=options, tags=tags)


def fixed_point(
    T: Callable[[Z, Any], Z],
    *,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
    contraction: RealScalar | Callable[[Any], RealScalar] | None = None,
) -> Decorator:
    r"""Give the result of any solver the derivative of the fixed point $z = T(z, \theta)$. A decorator.

    This covers projected and proximal gradient methods: $T$ is one step of them, with any step length.

    **Arguments:**

    - `T`: `(z, theta) -> z`.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][].
    - `contraction`: a Lipschitz constant, below one, of $T(\cdot, \theta)$ in the 2-norm, or a function of `theta`
        that gives it. It is only used to bound errors.

    **Returns:**

    A decorator.

    **Raises:**

    `ValueError` if `contraction` is a number outside of $[0, 1)$.

    !!! Example

        ```python
        @fixed_point(lambda z, theta: jnp.tanh(theta["w"] @ z + theta["b"]))
        def solve(theta):
            return jax.lax.fori_loop(0, 50, lambda _, z: jnp.tanh(theta["w"] @ z + theta["b"]), 0 * theta["b"])
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (3) and (9).
    """
    if isinstance(contraction, int | float) and not 0 <= contraction < 1:
        raise ValueError(f"`contraction` must be a Lipschitz constant in [0, 1); got {contraction}")

    def optimality(z, theta):
        return jtu.tree_map(lambda new, old: new - old, T(z, theta), z)

    alpha = None if contraction is None else lambda theta: 1 - _at(contraction, theta)
    return decorator(optimality, linear_solver=linear_solver, options=options, alpha=alpha)


def argmin(
    phi: Callable[[Any, Any], Array],
    *,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
    convex: bool = True,
    strong_convexity: RealScalar | Callable[[Any], RealScalar] | None = None,
) -> Decorator:
    r"""Give the result of any minimiser the derivative of $\arg\min_z \phi(z, \theta)$. A decorator.

    The optimality map is $\nabla_1\phi$, so the linear systems have the Hessian for a matrix.

    **Arguments:**

    - `phi`: the objective `(z, theta) -> scalar`, twice differentiable.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][].
    - `convex`: promises a positive definite Hessian at the solution, as at any strict minimum. Where it is not (a
        saddle point), the derivative raises. With `False` the Hessian is only taken to be symmetric.
    - `strong_convexity`: a positive number $\mu$ such that $\phi(\cdot,\theta) - \tfrac{\mu}{2}\lVert\cdot\rVert^2$ is
        convex, or a function of `theta` that gives it. It is only used to bound errors.

    **Returns:**

    A decorator.

    **Raises:**

    `ValueError` if `strong_convexity` is a number that is not positive.

    !!! Example

        ```python
        @argmin(lambda w, lam: 0.5 * jnp.sum((x @ w - y) ** 2) + 0.5 * lam * jnp.sum(w**2))
        def ridge(lam):
            return jnp.linalg.solve(x.T @ x + lam * jnp.eye(5), x.T @ y)
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (4).
    """
    if isinstance(strong_convexity, int | float) and not strong_convexity > 0:
        raise ValueError(f"`strong_convexity` must be positive; got {strong_convexity}")
    tags = _PSD if convex else _SYMMETRIC
    return decorator(jax.grad(phi), linear_solver=linear_solver, options=options, tags=tags, alpha=strong_convexity)


def least_squares(
    rho: Callable[[Any, Any], Any],
    *,
    linear_solver: LinearSolver = None,
    options: dict[str, Any] | None = None,
    gauss_newton: bool = False,
) -> Decorator:
    r"""Give the result of any solver the derivative of $\arg\min_z \tfrac12\lVert\rho(z, \theta)\rVert^2$. A decorator.

    The linear systems have the true Hessian for a matrix, positive definite at a strict minimum; elsewhere the
    derivative raises.

    **Arguments:**

    - `rho`: the residuals, `(z, theta) -> array(s)`.
    - `linear_solver`, `options`: see [`implicit_core.implicit.ImplicitAdjoint`][].
    - `gauss_newton`: replace the Hessian by $J^\top J$, where $J = \partial_1\rho$. This costs less, and is *biased*
        unless $\rho = 0$ at the solution or is affine in $z$.

    **Returns:**

    A decorator.

    !!! Example

        ```python
        @least_squares(lambda z, theta: theta["matrix"] @ z - theta["y"])
        def solve(theta):
            return jnp.linalg.lstsq(theta["matrix"], theta["y"])[0]
        ```

    ??? cite "Reference"

        Blondel et al., "Efficient and Modular Implicit Differentiation", arXiv:2105.15183, (4).
    """

    def optimality(z, theta):
        if not gauss_newton:
            return _gradient(rho, z, theta)
        return _gauss_newton(eqx.filter_closure_convert(rho, z, theta), z, theta)

    return decorator(optimality, linear_solver=linear_solver, options=options, tags=_PSD)


def _gradient(rho, z, theta):
    out, pullback = jax.vjp(lambda z: rho(z, theta), z)
    return pullback(out)[0]


@eqx.filter_custom_jvp
def _gauss_newton(rho, z, theta):
    return _gradient(rho, z, theta)


# Not a stopped gradient in J: that would be right to first order, and wrong without a word to second.
@_gauss_newton.def_jvp
def _gauss_newton_jvp(primals, tangents):
    rho, z, theta = primals
    t_rho, t_z, t_theta = tangents
    out, t_out = eqx.filter_jvp(lambda rho, theta: _gradient(rho, z, theta), (rho, theta), (t_rho, t_theta))
    if any(leaf is not None for leaf in jtu.tree_leaves(t_z)):
        _, push = jax.linearize(lambda z: rho(z, theta), z)
        (curved,) = jax.linear_transpose(push, z)(push(t_z))
        # `None` where neither captured arrays nor `theta` are differentiated.
        t_out = jtu.tree_map(lambda t, c: c if t is None else c + t, t_out, curved, is_leaf=lambda t: t is None)
    return out, t_out


def _at(bound: Any, theta: Any) -> Any:
    return bound(theta) if callable(bound) else bound


def _as_array(leaf: Any) -> Any:
    # `jnp.array`, because inside `jax.grad` a Python number is a tracer around what is not an array.
    return jnp.array(leaf) if eqx.is_array_like(leaf) else leaf


def _as_inexact(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(f"the solver must return arrays of floating point; got a leaf of dtype {leaf.dtype}")
    return leaf


def _check_square(F: Callable[[Any, Any], Any], z: Any, theta: Any) -> None:
    out = eqx.filter_eval_shape(F, z, theta)
    shapes = [jtu.tree_map(lambda leaf: leaf.shape, tree) for tree in (out, z)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"`F` must have the shapes of the solution, {shapes[1]}; got {shapes[0]}")
