import abc
import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Inexact, PRNGKeyArray

from ._ep_field import AbstractLoss, AbstractVectorField, CrossEntropy


def sigma4(z: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    r"""Return $1/(1 + e^{-4z+2})$: a sigmoid of slope one at $z = 1/2$, holomorphic but for poles 0.785 off the axis.

    !!! Example

        ```python
        ep.sigma4(jnp.array(0.5))  # 0.5
        ```
    """
    return jax.lax.logistic(4 * z - 2)


def dsilu(z: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    r"""Return $\tfrac z2 s(z) + (1 - \tfrac z2) s(z - 2)$ with the logistic $s$: a smooth hard sigmoid, from 0 to 1.

    !!! Example

        ```python
        ep.dsilu(jnp.array(1.0))  # 0.5
        ```
    """
    half = z / 2
    return half * jax.lax.logistic(z) + (1 - half) * jax.lax.logistic(z - 2)


def softmax_pool(
    v: Inexact[Array, "height width channels"], window: int = 2, temperature: float = 1.0
) -> Inexact[Array, "pooled_height pooled_width channels"]:
    r"""Return the mean of each window under its own softmax, $\sum v e^{v/T} / \sum e^{v/T}$: a holomorphic max-pooling.

    **Arguments:**

    - `v`: an image, channels last.
    - `window`: the side of the windows, which do not overlap.
    - `temperature`: $T$.

    **Returns:**

    The pooled image.

    **Raises:**

    `ValueError` if the windows do not fill the image.

    !!! Example

        ```python
        ep.softmax_pool(jnp.ones((4, 4, 3))).shape  # (2, 2, 3)
        ```
    """
    height, width, channels = v.shape
    if height % window or width % window:
        raise ValueError(f"`window` must divide the sides of the image, {height} and {width}; got {window}")
    tiles = v.reshape(height // window, window, width // window, window, channels)
    scaled = tiles / temperature
    # Any constant shift will do, so taking the real part of a complex one does no harm.
    shift = jnp.max(jax.lax.stop_gradient(scaled.real), axis=(1, 3), keepdims=True)
    weights = jnp.exp(scaled - shift.astype(v.dtype))
    return jnp.sum(tiles * weights, axis=(1, 3)) / jnp.sum(weights, axis=(1, 3))


class AbstractConnection(eqx.Module):
    """A current from the activities of one layer, or from the input, into another layer."""

    pre: eqx.AbstractVar[int | None]
    post: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(
        self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...], gain: float, dtype: Any, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Return parameters: a dictionary with `weight`, and perhaps `bias`."""

    @abc.abstractmethod
    def mix(self, own: Array, partner: Array, cosine: float, sine: float) -> Array:
        """Return a weight at an angle to that of the connection in the other direction."""

    @abc.abstractmethod
    def __call__(self, params: Any, pre: Array, post: Array) -> Array:
        """Return the current."""


class Dense(AbstractConnection):
    r"""The current $W r + b$ between layers of any shape.

    **Arguments:**

    - `pre`, `post`: the layers, by number; `None` is the input.
    - `bias`: whether there is one.

    !!! Example

        ```python
        ep.Dense(None, 0, bias=True)
        ```
    """

    pre: int | None = eqx.field(static=True)
    post: int = eqx.field(static=True)
    bias: bool = eqx.field(default=False, static=True)

    def init(
        self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...], gain: float, dtype: Any, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Return Gaussian weights of variance `gain**2` over the number of inputs, and no bias."""
        m, n = math.prod(post_shape), math.prod(pre_shape)
        weight = gain / math.sqrt(n) * jr.normal(key, (m, n), dtype)
        return {"weight": weight, "bias": jnp.zeros(m, dtype)} if self.bias else {"weight": weight}

    def mix(self, own: Array, partner: Array, cosine: float, sine: float) -> Array:
        """Return `sine` times the own weight and `cosine` times the partner's transpose."""
        return sine * own + cosine * partner.T

    def __call__(self, params: Any, pre: Array, post: Array) -> Array:
        """Return the current."""
        out = params["weight"] @ pre.ravel()
        out = out + params["bias"] if self.bias else out
        return out.reshape(post.shape)


class Conv(AbstractConnection):
    r"""The current of a convolution, pooled by [`fixedpoint_eq.ep.softmax_pool`][]. Images have the channels last.

    With `feedback` it is the current from above of a convolutional network: the derivative in the activities $r$ of the
    layer `post` of $\sum \operatorname{pool}(V * r) \cdot r_\text{pre}$, a transposed convolution through the unpooling.

    **Arguments:**

    - `pre`, `post`: the layers, by number; `None` is the input.
    - `kernel`: the side of the kernel.
    - `padding`: `"SAME"` or `"VALID"`.
    - `pool`: the window of the pooling; one is none.
    - `bias`: whether there is one, for each channel; not with `feedback`.
    - `feedback`: whether `pre` is the layer above.

    **Raises:**

    `ValueError` for a bias of a feedback connection, or one from the input.

    !!! Example

        ```python
        ep.Conv(None, 0, bias=True), ep.Conv(0, 1, bias=True), ep.Conv(1, 0, feedback=True)
        ```
    """

    pre: int | None = eqx.field(static=True)
    post: int = eqx.field(static=True)
    kernel: int = eqx.field(default=3, static=True)
    padding: Literal["SAME", "VALID"] = eqx.field(default="SAME", static=True)
    pool: int = eqx.field(default=2, static=True)
    bias: bool = eqx.field(default=False, static=True)
    feedback: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.feedback and (self.bias or self.pre is None):
            raise ValueError(
                f"`feedback` must come from a layer, and has no `bias`; got pre={self.pre} and bias={self.bias}"
            )

    def init(
        self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...], gain: float, dtype: Any, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Return Gaussian kernels of variance `gain**2` over the number of inputs, and no bias."""
        below, above = (post_shape[-1], pre_shape[-1]) if self.feedback else (pre_shape[-1], post_shape[-1])
        shape = (self.kernel, self.kernel, below, above)
        weight = gain / math.sqrt(self.kernel**2 * below) * jr.normal(key, shape, dtype)
        return {"weight": weight, "bias": jnp.zeros(above, dtype)} if self.bias else {"weight": weight}

    def mix(self, own: Array, partner: Array, cosine: float, sine: float) -> Array:
        """Return `sine` times the own kernel and `cosine` times the partner's, which has the same layout."""
        return sine * own + cosine * partner

    def __call__(self, params: Any, pre: Array, post: Array) -> Array:
        """Return the current."""
        if self.feedback:
            _, pullback = jax.vjp(lambda r: self._forward(params["weight"], r), post)
            return pullback(pre)[0]
        out = self._forward(params["weight"], pre)
        if self.bias:
            # A bias of a channel moves its maximum, mean and everything between them alike: pooling can come first.
            out = out + params["bias"][None, None]
        return out

    def _forward(self, weight: Array, image: Array) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(image[None], weight, (1, 1), self.padding, dimension_numbers=layout)[0]
        return out if self.pool == 1 else softmax_pool(out, self.pool)


class Network(AbstractVectorField):
    """A recurrent network of layers and connections, forward and backward, each with its own weights.

    [`fixedpoint_eq.ep.mlp`][] and [`fixedpoint_eq.ep.convnet`][] make the usual ones.

    **Arguments:** (all by keyword)

    - `input_shape`: the shape of an input.
    - `shapes`: those of the layers.
    - `connections`: [`fixedpoint_eq.ep.Dense`][] and [`fixedpoint_eq.ep.Conv`][]. The connection of a pair of layers
        that is named later is the backward one.
    - `num_outputs`: that of a linear readout of the last layer; `None` reads the activities of the last layer.
    - `activation_fn`: of each unit, holomorphic.
    - `loss`: of the prediction.

    **Raises:**

    `ValueError` if a connection does not fit, or a layer has none.

    !!! Example

        ```python
        connections = (ep.Dense(None, 0), ep.Dense(0, 1), ep.Dense(1, 0))
        net = ep.Network(input_shape=(64,), shapes=((32,), (10,)), connections=connections)
        params = net.init(key=jr.key(0), angle=90.0)
        ```
    """

    input_shape: tuple[int, ...] = eqx.field(static=True, kw_only=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True, kw_only=True)
    connections: tuple[AbstractConnection, ...] = eqx.field(kw_only=True)
    num_outputs: int | None = eqx.field(default=None, static=True, kw_only=True)
    activation_fn: Callable[[Array], Array] = eqx.field(default=sigma4, static=True, kw_only=True)
    loss: AbstractLoss = eqx.field(default=CrossEntropy(), kw_only=True)

    def __check_init__(self):
        layers = range(len(self.shapes))
        for connection in self.connections:
            if connection.post not in layers or not (connection.pre is None or connection.pre in layers):
                raise ValueError(f"`connections` must be between {len(self.shapes)} layers; got {connection}")
        idle = set(layers) - {connection.post for connection in self.connections}
        if idle:
            raise ValueError(f"`connections` must lead to each layer; got none to {sorted(idle)}")
        params = jax.eval_shape(lambda: self.init(key=jr.key(0)))
        state = tuple(jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in self.shapes)
        x = jax.ShapeDtypeStruct(self.input_shape, jnp.result_type(float))
        for connection, p in zip(self.connections, params["connections"], strict=True):
            pre = x if connection.pre is None else state[connection.pre]
            post = state[connection.post]
            out = jax.eval_shape(connection, p, pre, post)
            if out.shape != post.shape:
                raise ValueError(f"`connections` must have the shapes of the layers, {post.shape}; got {out.shape}")

    def init(self, *, key: PRNGKeyArray, angle: float = 90.0, gain: float = 0.5, dtype: Any = None) -> dict[str, Any]:
        r"""Return random parameters.

        **Arguments:**

        - `key`: a random key.
        - `angle`: in degrees, between backward weights and the transposes of the forward ones that they answer:
            $V = \sin(a) V' + \cos(a) W^\top$. Zero is a symmetric start, 90 an independent one.
        - `gain`: weights have this over the square root of the number of inputs for a standard deviation. It must be
            small enough for the network to settle.
        - `dtype`: of the parameters.

        **Returns:**

        A dictionary with a tuple of `connections`, and the `readout`, or `None`.
        """
        dtype = jnp.result_type(float) if dtype is None else dtype
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        *keys, last = jr.split(key, len(self.connections) + 1)
        params, seen = [], {}
        for connection, k in zip(self.connections, keys, strict=True):
            pair = (connection.pre, connection.post)
            pre_shape = self.input_shape if connection.pre is None else self.shapes[connection.pre]
            p = connection.init(pre_shape, self.shapes[connection.post], gain, dtype, k)
            partner = seen.get(pair[::-1])
            if partner is not None:
                p["weight"] = connection.mix(p["weight"], partner, cosine, sine)
            seen[pair] = p["weight"]
            params.append(p)
        readout = None
        if self.num_outputs is not None:
            n = math.prod(self.shapes[-1])
            weight = jr.normal(last, (self.num_outputs, n), dtype) / math.sqrt(n)
            readout = {"weight": weight, "bias": jnp.zeros(self.num_outputs, dtype)}
        return {"connections": tuple(params), "readout": readout}

    def initial(self, x: Any) -> tuple[Array, ...]:
        """Return zeros."""
        return tuple(jnp.zeros(shape, x.dtype) for shape in self.shapes)

    def drive(self, params: Any, r: Any, x: Any) -> tuple[Array, ...]:
        """Return the sums of the currents; with `None` for `x`, those between layers alone."""
        out = [jnp.zeros_like(leaf) for leaf in r]
        for connection, p in zip(self.connections, params["connections"], strict=True):
            if connection.pre is not None:
                pre = r[connection.pre]
            elif x is not None:
                pre = x
            else:
                continue
            out[connection.post] = out[connection.post] + connection(p, pre, r[connection.post])
        return tuple(out)

    def activation(self, u: Any) -> tuple[Array, ...]:
        """Return the activities."""
        return tuple(map(self.activation_fn, u))

    def readout(self, params: Any, r: Any) -> Array:
        """Return the linear readout of the last layer, or its activities."""
        if params["readout"] is None:
            return r[-1]
        return params["readout"]["weight"] @ r[-1].ravel() + params["readout"]["bias"]


def mlp(
    sizes: tuple[int, ...],
    *,
    num_outputs: int | None = None,
    feedback: Literal["reciprocal", "loop"] = "reciprocal",
    activation: Callable[[Array], Array] = sigma4,
    loss: AbstractLoss = CrossEntropy(),
) -> Network:
    """Return a chain of dense layers with feedback, whose weights are independent of the forward ones.

    **Arguments:**

    - `sizes`: of the input, and of each layer.
    - `num_outputs`: see [`fixedpoint_eq.ep.Network`][].
    - `feedback`: `"reciprocal"`, from each layer to the one below; or `"loop"`, from the last layer to the first alone.
    - `activation`, `loss`: see [`fixedpoint_eq.ep.Network`][].

    **Returns:**

    A [`fixedpoint_eq.ep.Network`][].

    **Raises:**

    `ValueError` for fewer than two sizes, or an unknown kind of feedback.

    !!! Example

        ```python
        field = ep.mlp((64, 64, 64, 10), num_outputs=10)
        ```
    """
    if len(sizes) < 2:
        raise ValueError(f"`sizes` must be of the input and of one layer at least; got {sizes}")
    if feedback not in ("reciprocal", "loop"):
        raise ValueError(f'`feedback` must be "reciprocal" or "loop"; got {feedback!r}')
    top = len(sizes) - 2
    forward = [Dense(None if i == 0 else i - 1, i, bias=True) for i in range(top + 1)]
    if feedback == "loop":
        backward = [Dense(top, 0)] if top > 0 else []
    else:
        backward = [Dense(i + 1, i) for i in range(top)]
    shapes = tuple((n,) for n in sizes[1:])
    return _network((sizes[0],), shapes, (*forward, *backward), num_outputs, activation, loss)


def convnet(
    input_shape: tuple[int, int, int],
    channels: tuple[int, ...],
    num_outputs: int,
    *,
    kernel: int = 3,
    activation: Callable[[Array], Array] = dsilu,
    loss: AbstractLoss = CrossEntropy(),
) -> Network:
    """Return a chain of pooled convolutions with feedback through kernels of its own, and a linear readout.

    **Arguments:**

    - `input_shape`: height, width and channels. Each layer halves the sides.
    - `channels`: those of each layer.
    - `num_outputs`: that of the readout.
    - `kernel`: the side of the kernels.
    - `activation`, `loss`: see [`fixedpoint_eq.ep.Network`][].

    **Returns:**

    A [`fixedpoint_eq.ep.Network`][].

    **Raises:**

    `ValueError` if the sides cannot be halved so often.

    !!! Example

        ```python
        field = ep.convnet((8, 8, 1), (16, 32), 10)
        ```
    """
    height, width, _ = input_shape
    scale = 2 ** len(channels)
    if height % scale or width % scale:
        raise ValueError(f"`input_shape` must have sides that are multiples of {scale}; got {input_shape}")
    shapes = tuple((height >> i, width >> i, c) for i, c in enumerate(channels, 1))
    forward = [Conv(None if i == 0 else i - 1, i, kernel, bias=True) for i in range(len(channels))]
    backward = [Conv(i + 1, i, kernel, feedback=True) for i in range(len(channels) - 1)]
    return _network(input_shape, shapes, (*forward, *backward), num_outputs, activation, loss)


def _network(input_shape, shapes, connections, num_outputs, activation, loss) -> Network:
    return Network(
        input_shape=input_shape,
        shapes=shapes,
        connections=connections,
        num_outputs=num_outputs,
        activation_fn=activation,
        loss=loss,
    )
