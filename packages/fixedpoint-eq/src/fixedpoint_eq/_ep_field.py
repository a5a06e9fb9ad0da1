import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Num


class AbstractLoss(eqx.Module):
    """A loss of the prediction of one sample, with the gradient that its holomorphic extension has."""

    @abc.abstractmethod
    def value(self, prediction: Any, y: Any) -> Array:
        """Return the loss, a real scalar, of a real prediction."""

    @abc.abstractmethod
    def gradient(self, prediction: Any, y: Any) -> Any:
        """Return the derivative in `prediction`, for complex predictions its analytic continuation."""


class MSE(AbstractLoss):
    r"""$\tfrac12 \lVert p - y\rVert^2$, as a polynomial: for complex $p$ nothing is conjugated.

    !!! Example

        ```python
        ep.MSE().gradient(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0]))  # [1. 0.]
        ```
    """

    def value(self, prediction: Inexact[Array, "..."], y: Inexact[Array, "..."]) -> Array:
        """Return the loss."""
        return jnp.sum((prediction - y) ** 2) / 2

    def gradient(self, prediction: Inexact[Array, "..."], y: Inexact[Array, "..."]) -> Array:
        """Return `prediction - y`."""
        return prediction - y


class CrossEntropy(AbstractLoss):
    r"""$-\sum_c y_c \log\operatorname{softmax}(p)_c$, where `y` are probabilities, or the integer index of a class.

    Only its gradient, $\operatorname{softmax}(p) - y$, is ever continued: the logarithm has a branch cut, the softmax
    is meromorphic.

    !!! Example

        ```python
        ep.CrossEntropy().gradient(jnp.zeros(2), jnp.array(1))  # [0.5 -0.5]
        ```
    """

    def value(self, prediction: Inexact[Array, " c"], y: Num[Array, "..."]) -> Array:
        """Return the loss."""
        return -jnp.sum(_probabilities(y, prediction) * jax.nn.log_softmax(prediction))

    def gradient(self, prediction: Inexact[Array, " c"], y: Num[Array, "..."]) -> Array:
        """Return `softmax(prediction) - y`."""
        shift = jnp.max(jax.lax.stop_gradient(prediction.real))
        weights = jnp.exp(prediction - shift.astype(prediction.dtype))
        # The sum of the probabilities is one for a distribution; the gradient of the value is right for others too.
        y = _probabilities(y, prediction)
        return jnp.sum(y) * weights / jnp.sum(weights) - y


class HolomorphicLoss(AbstractLoss):
    """Any loss that is a holomorphic function of the prediction, by automatic differentiation.

    **Arguments:**

    - `fn`: `(prediction, y) -> scalar`; real for real predictions, and made without `conj`, `abs`, `max` or `real`.

    !!! Example

        ```python
        ep.HolomorphicLoss(lambda p, y: jnp.sum((p - y) ** 4))
        ```
    """

    fn: Callable[[Any, Any], Array]

    def value(self, prediction: Any, y: Any) -> Array:
        """Return the loss."""
        return self.fn(prediction, y)

    def gradient(self, prediction: Any, y: Any) -> Any:
        """Return its derivative in `prediction`."""
        out, pullback = jax.vjp(lambda p: self.fn(p, y), prediction)
        return pullback(jnp.ones_like(out))[0]


def _probabilities(y: Array, prediction: Array) -> Array:
    if jnp.issubdtype(y.dtype, jnp.inexact):
        return y
    return jax.nn.one_hot(y, prediction.shape[-1], dtype=prediction.dtype)


class AbstractVectorField(eqx.Module):
    r"""The dynamics of a network that settles, and what is read from it: the protocol of `fixedpoint_eq.ep`.

    The network settles where the membrane potentials $u$ equal the current that the activities $r = \phi(u)$ drive:
    $u = H(\theta, \phi(u), x)$. A nudge of size $\beta$ adds $\beta\, \partial L/\partial r$ to the current, so that a
    positive $\beta$ pushes the cost *up*. All methods are for one sample, and are `vmap`ped over a batch. `params` is
    any pytree; `u` and `r` are pytrees of the same shapes, real, or complex for complex nudges. The estimators that
    use these need every method to be holomorphic in `r` or `u`: no `conj`, `abs`, `max`, `relu` or `sign`.

    A subclass has a field `loss`, and the four methods below.

    !!! Example

        ```python
        class Linear(ep.AbstractVectorField):
            loss: ep.AbstractLoss = ep.MSE()

            def initial(self, x):
                return jnp.zeros_like(x)

            def drive(self, params, r, x):
                return params @ r + x

            def activation(self, u):
                return u

            def readout(self, params, r):
                return r
        ```
    """

    loss: eqx.AbstractVar[AbstractLoss]

    @abc.abstractmethod
    def initial(self, x: Any) -> Any:
        """Return the potentials from which the free phase starts."""

    @abc.abstractmethod
    def drive(self, params: Any, r: Any, x: Any) -> Any:
        """Return the current $H$ into each unit, of the structure of the state."""

    @abc.abstractmethod
    def activation(self, u: Any) -> Any:
        r"""Return the activities $\phi(u)$, unit by unit."""

    @abc.abstractmethod
    def readout(self, params: Any, r: Any) -> Any:
        """Return the prediction, which is no part of the dynamics."""

    def cost(self, params: Any, r: Any, y: Any) -> Array:
        """Return the loss of the prediction at `r`."""
        return self.loss.value(self.readout(params, r), y)

    def cost_gradient(self, params: Any, r: Any, y: Any) -> Any:
        r"""Return $\partial L/\partial r$, for complex `r` its analytic continuation."""
        prediction, pullback = jax.vjp(lambda r: self.readout(params, r), r)
        return pullback(self.loss.gradient(prediction, y))[0]
