from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from implicit_core.krylov import FGMRES, MINRES, real_dtype, tree_norm
from implicit_core.operators import AbstractOperator
from jaxtyping import Array, Bool

from ._batch import SampleOperator, dense, lanes, samples_tag, zero_tag
from ._misc import tree_sub


MAX_DENSE = 64  # unknowns of a sample up to which its Jacobian is factorised

# The cost of a step is that of the whole basis. Near the fixed point of a map that contracts, shorter ones take a few
# products more, at most an eighth, and little more than half the time and memory.
_RESTART = 16

# The operator that `init` was given, and whether its transpose, or its conjugate, is meant.
State = tuple[lx.AbstractLinearOperator, eqxi.Static, eqxi.Static]


class SampleWise(lx.AbstractLinearSolver[State]):
    """Solve with any Lineax solver, sample by sample, and over the reals where the operator is not complex-linear.

    - With `samples`, the operator has one block for each index of the leading axis, and the solver is given each block
        by itself: a matrix is that of a block, an inner product that of a sample. That the operator is of this kind is
        checked, by one product.
    - Of a function that is not holomorphic the Jacobian is linear over the reals only: this is probed, by two products,
        and then the solver is given the operator on real and imaginary parts. With `holomorphic` it is an error.
    - The solution for a right-hand side of zero is zero, whatever the operator.
    - With `zero` the solution of a system that is not solved is zero, which counts as a success.
    """

    inner: lx.AbstractLinearSolver | None
    samples: bool = eqx.field(static=True)
    holomorphic: bool = eqx.field(default=False, static=True)
    zero: bool = eqx.field(default=False, static=True)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> State:
        """Linearise the operator. See `lineax.AbstractLinearSolver.init`."""
        del options
        return lx.linearise(operator), eqxi.Static(False), eqxi.Static(False)

    def compute(self, state: State, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """Solve. See `lineax.AbstractLinearSolver.compute`."""
        del options
        operator, transposed, conjugated = state[0], state[1].value, state[2].value
        turned = operator.transpose() if transposed else operator
        turned = lx.conj(turned) if conjugated else turned
        if self.samples:
            vector = eqx.error_if(
                vector,
                mixes_samples(turned, vector),
                "`fn` mixes samples: the value of one sample depends on the state of another. Solve without "
                "`batch_axis`, or make `fn` act on each sample by itself.",
            )
        inner = self._chosen(operator, vector)
        kinds = list(map(jnp.iscomplexobj, jtu.tree_leaves(vector)))
        if not any(kinds):
            return self._solve(inner, operator, vector, transposed, conjugated)
        if self.holomorphic and not all(kinds):
            raise ValueError(
                f"`holomorphic=True` is for states that are complex in every leaf; got {sum(kinds)} of {len(kinds)} leaves"
            )

        def over_reals():
            # JAX's transpose belongs to the pairing Re(x y), that of the parts to Re(conj(x) y).
            turn = tree_conj if transposed != conjugated else lambda tree: tree
            parts = RealOperator(operator=operator)
            value, result, stats = self._solve(inner, parts, to_real(turn(vector)), transposed, False)
            return turn(from_real(value, vector)), result, stats

        if not all(kinds):  # real unknowns have no multiples by i
            return over_reals()
        linear = is_complex_linear(turned, vector)
        if self.holomorphic:
            message = "`fn` is not holomorphic, though `holomorphic=True` says so. Without it parts are solved for."
            vector = eqx.error_if(vector, ~linear, message)
            return self._solve(inner, operator, vector, transposed, conjugated)
        return jax.lax.cond(linear, lambda: self._solve(inner, operator, vector, transposed, conjugated), over_reals)

    def _chosen(self, operator, vector) -> lx.AbstractLinearSolver:
        if self.inner is not None:
            return self.inner
        count = jtu.tree_leaves(vector)[0].shape[0] if self.samples else 1
        if sum(leaf.size for leaf in jtu.tree_leaves(vector)) <= MAX_DENSE * count:
            return lx.LU()
        real = not any(map(jnp.iscomplexobj, jtu.tree_leaves(vector)))
        return MINRES() if real and lx.is_symmetric(operator) else FGMRES(restart=_RESTART)

    def _solve(self, inner, operator, vector, transposed: bool, conjugated: bool):
        def one(operator, vector):
            state = inner.init(operator, {})
            if transposed:
                state, _ = inner.transpose(state, {})
            if conjugated:
                state, _ = inner.conj(state, {})
            x, result, stats = inner.compute(state, vector, {})
            zero = _all(jtu.tree_map(lambda leaf: leaf == 0, vector))
            if self.zero:
                zero = zero | (result != lx.RESULTS.successful) | ~_all(jtu.tree_map(jnp.isfinite, x))
            x = jtu.tree_map(lambda leaf: jnp.where(zero, jnp.zeros_like(leaf), leaf), x)
            return x, lx.RESULTS.where(zero, lx.RESULTS.successful, result), stats

        if not self.samples:
            return one(operator, vector)
        tags = frozenset(getattr(operator, "tags", frozenset())) - {samples_tag, zero_tag}
        x, results, stats = lanes(lambda v: one(SampleOperator(operator=operator, tags=tags), v))(vector)
        # One for all, that of the first sample that failed.
        worst = jnp.argmax(results != lx.RESULTS.successful)
        return x, jtu.tree_map(lambda leaf: leaf[worst], results), stats

    def transpose(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Say that the transpose is meant. See `lineax.AbstractLinearSolver.transpose`."""
        del options
        operator, transposed, conjugated = state
        return (operator, eqxi.Static(not transposed.value), conjugated), {}

    def conj(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Say that the conjugate is meant. See `lineax.AbstractLinearSolver.conj`."""
        del options
        operator, transposed, conjugated = state
        return (operator, transposed, eqxi.Static(not conjugated.value)), {}

    def assume_full_rank(self) -> bool:
        """Return `True`: derivatives are those of a nonsingular system."""
        return True


def _all(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(leaf) for leaf in jtu.tree_leaves(tree)]))


class RealOperator(AbstractOperator):
    """An operator on complex vectors, as one on their real and imaginary parts, which lie along a last axis."""

    operator: lx.AbstractLinearOperator
    conjugate: bool = eqx.field(default=False, static=True)
    tags: frozenset[object] = eqx.field(default=frozenset(), static=True)

    def mv(self, vector: Any) -> Any:
        """Return the product with a vector."""
        turn = tree_conj if self.conjugate else lambda tree: tree
        return to_real(turn(self.operator.mv(turn(from_real(vector, self.operator.in_structure())))))

    def as_matrix(self) -> Array:
        """Return the dense matrix."""
        return dense(self)

    def transpose(self) -> "RealOperator":
        """Return the transpose."""
        return RealOperator(operator=self.operator.transpose(), conjugate=not self.conjugate)

    def in_structure(self) -> Any:
        """Return the structure of the parts."""
        return jax.eval_shape(to_real, self.operator.in_structure())

    def out_structure(self) -> Any:
        """Return the structure of the parts of a product."""
        return jax.eval_shape(to_real, self.operator.out_structure())


lx.materialise.register(RealOperator, lambda operator: operator)


def tree_conj(tree: Any) -> Any:
    """Conjugate every complex leaf."""
    return jtu.tree_map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, tree)


def to_real(tree: Any) -> Any:
    """Return the real and imaginary parts of every complex leaf along a last axis."""
    return jtu.tree_map(lambda x: jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x, tree)


def from_real(tree: Any, like: Any) -> Any:
    """Undo `to_real`."""

    def leaf(x, like):
        return jax.lax.complex(x[..., 0], x[..., 1]) if jnp.issubdtype(like.dtype, jnp.complexfloating) else x

    return jtu.tree_map(leaf, tree, like)


def random_like(tree: Any) -> Any:
    """Return a vector for probes, always the same one."""
    leaves, treedef = jtu.tree_flatten(tree)
    keys = jr.split(jr.key(0), len(leaves))
    return treedef.unflatten(jr.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True))


def is_complex_linear(operator: lx.AbstractLinearOperator, like: Any) -> Bool[Array, ""]:
    """Say whether `A (i v) = i A v` for a random `v`: with probability one, whether `A` is linear over the complex."""
    v = random_like(like)
    times_i = lambda tree: jtu.tree_map(lambda leaf: 1j * leaf, tree)
    turned = times_i(operator.mv(v))
    eps = float(jnp.finfo(real_dtype(like)).eps)
    return tree_norm(tree_sub(operator.mv(times_i(v)), turned)) <= eps**0.5 * (tree_norm(v) + tree_norm(turned))


def mixes_samples(operator: lx.AbstractLinearOperator, like: Any) -> Bool[Array, ""]:
    """Say whether some samples' part of a product depends on other samples: probed by a random half of them."""
    count = jtu.tree_leaves(like)[0].shape[0]
    chosen = np.random.default_rng(0).permutation(count) < count // 2
    keep = lambda tree, which: jtu.tree_map(lambda x: x * which.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)), tree)
    v = keep(random_like(like), jnp.asarray(chosen))
    product = operator.mv(v)
    eps = float(jnp.finfo(real_dtype(like)).eps)
    return tree_norm(keep(product, jnp.asarray(~chosen))) > eps**0.5 * tree_norm(product)
