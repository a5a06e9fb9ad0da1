from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def from_torch(tensor: Any, *, copy: bool = True) -> Array:
    """Return a PyTorch tensor as a JAX array, on the same device, by DLPack. PyTorch is not imported.

    ```python
    stats = stats.update(interop.from_torch(features), interop.from_torch(labels))
    ```

    **Arguments:**

    - `tensor`: the tensor. Gradients are left behind, strides made contiguous.
    - `copy`: `False` shares the memory where it can: then do not write into the tensor while the array is in use, which the
        next in-place operation of a training loop would do.

    **Returns:**

    The array, of the tensor's dtype; without `jax_enable_x64`, 64-bit types become 32-bit ones.

    **Raises:**

    `TypeError` if it is no tensor.
    """
    detach = getattr(tensor, "detach", None)
    if detach is None:
        raise TypeError(f"`tensor` must be a PyTorch tensor, got {type(tensor).__name__}.")
    return jnp.from_dlpack(detach().contiguous(), copy=True if copy else None)
