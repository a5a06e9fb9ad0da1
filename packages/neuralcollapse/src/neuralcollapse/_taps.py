from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx


class Tapped(eqx.Module):
    """An Equinox model that also returns what enters, or leaves, some of its layers. Made by `capture`.

    **Attributes:**

    - `model`: the model.
    """

    model: Any
    layers: tuple[tuple[str, Callable[[Any], Any]], ...] = eqx.field(static=True)
    at: Literal["input", "output"] = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the model; return its output, and what was captured by name."""
        seen: dict[str, list[Any]] = {name: [] for name, _ in self.layers}
        model = self.model
        for name, where in self.layers:
            model = eqx.tree_at(
                where, model, replace_fn=lambda layer, s=seen[name]: _Recorder(layer, _Store(s), self.at)
            )
        out = model(*args, **kwargs)
        for name, values in seen.items():
            if len(values) != 1:
                raise ValueError(
                    f"Layer {name!r} was called {len(values)} times in one pass of the model; only a layer that is called once "
                    "has features that are well defined. Tap a layer before or after it."
                )
        return out, {name: values[0] for name, values in seen.items()}


def capture(
    model: Any, layers: Mapping[str, Callable[[Any], Any]], *, at: Literal["input", "output"] = "input"
) -> Tapped:
    """Make an Equinox model that also returns what enters, or leaves, some of its layers.

    ```python
    tapped = taps.capture(model, {"penultimate": lambda m: m.layers[-1]})
    logits, features = jax.vmap(tapped)(x)
    features["penultimate"]  # what enters the last layer
    ```

    The model itself is not changed. A layer inside a `vmap` or `scan` *of the model* cannot be tapped: JAX refuses with a
    leaked tracer.

    **Arguments:**

    - `model`: a callable `eqx.Module`.
    - `layers`: by name, a function from the model to the layer, as for `eqx.tree_at`.
    - `at`: whether the layer's first argument or its output is wanted.

    **Returns:**

    A callable `eqx.Module`: the same arguments, and outputs `(output, {name: features})`.

    **Raises:**

    When called: `ValueError` if a layer was not called exactly once.
    """
    if at not in ("input", "output"):
        raise ValueError(f"`at` must be 'input' or 'output', got {at!r}.")
    if not layers:
        raise ValueError("`layers` must name at least one layer.")
    return Tapped(model, tuple(layers.items()), at)


def from_intermediates(intermediates: Any, path: str) -> Any:
    """Take one entry out of what a Flax model has sown, Linen or NNX. Flax is not imported.

    ```python
    # Linen: self.sow("intermediates", "features", h), or capture_intermediates=True
    _, state = model.apply(variables, x, mutable=["intermediates"])
    h = taps.from_intermediates(state["intermediates"], "features")
    # NNX: self.sow(nnx.Intermediate, "features", h)
    h = taps.from_intermediates(nnx.pop(model, nnx.Intermediate), "features")
    ```

    **Arguments:**

    - `intermediates`: the nested mapping.
    - `path`: the names on the way, with slashes: `"block_1/Dense_0/__call__"`.

    **Returns:**

    What was sown there last.

    **Raises:**

    `KeyError` naming what there is, if there is no such entry.
    """
    node = intermediates
    for name in path.split("/"):
        if not isinstance(node, Mapping) or name not in node:
            there = sorted(map(str, node)) if isinstance(node, Mapping) else "no further names"
            raise KeyError(f"nothing was sown at {path!r}: at {name!r} there is {there}")
        node = node[name]
    if isinstance(node, Mapping):
        raise KeyError(f"{path!r} is not an entry; below it are {sorted(map(str, node))}")
    # NNX keeps the tuple of what was sown in a variable.
    value = getattr(node, "value", node)
    return value[-1] if isinstance(value, tuple) else value


class _Store:
    """A list that is equal only to itself: what a layer writes to during one call of the model."""

    def __init__(self, values: list[Any]):
        self.values = values


class _Recorder(eqx.Module):
    layer: Any
    store: _Store = eqx.field(static=True)
    at: Literal["input", "output"] = eqx.field(static=True)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.layer(x, *args, **kwargs)
        self.store.values.append(x if self.at == "input" else out)
        return out

    def __getattr__(self, name: str) -> Any:
        # Models also read their layers' fields, such as `self.head.weight`.
        if name.startswith("__") or name in ("layer", "store", "at"):
            raise AttributeError(name)
        return getattr(self.layer, name)
