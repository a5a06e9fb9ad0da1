from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh(axis_name: str = "i", devices: Sequence[Any] | None = None) -> Mesh:
    """Return a one-dimensional mesh over `devices`, with an automatic axis.

    Automatic, because arrays with an explicit axis refuse ordinary indexing, which user code contains.

    **Arguments:**

    - `axis_name`: the name of the axis.
    - `devices`: the devices; all that JAX has if `None`.

    !!! Example

        ```python
        b = shard(jnp.ones(8), mesh())
        ```
    """
    devices = jax.devices() if devices is None else devices
    # Said outright, because the default kind of axis differs between JAX versions.
    return Mesh(np.asarray(devices), (axis_name,), axis_types=(AxisType.Auto,))


def shard(tree: Any, mesh: Mesh, axis: str | None = None) -> Any:
    """Split the leading axis of every array of `tree` over a mesh axis: the global view, for use under `jax.jit`.

    What is computed from the result under `jit` is the same as without; XLA adds the communication. Leaves that are not
    arrays are passed on. Call `lineax.linear_solve` with `throw=False` to keep its result split: the check that raises
    gathers it on every device first.

    **Arguments:**

    - `tree`: a pytree.
    - `mesh`: the mesh, for instance [`implicit_core.dist.mesh`][]`()`.
    - `axis`: the name of the mesh axis; may be left out where the mesh has only one.

    **Raises:**

    `ValueError` if an array has no axis or a leading one that the number of devices does not divide, or if `axis` is
    not an axis of the mesh.
    """
    if axis is None:
        if len(mesh.axis_names) != 1:
            raise ValueError(f"`axis` must name one of the mesh axes {mesh.axis_names}")
        (axis,) = mesh.axis_names
    if axis not in mesh.axis_names:
        raise ValueError(f"`axis` must be one of the mesh axes {mesh.axis_names}; got {axis!r}")
    size = mesh.shape[axis]
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def put(leaf):
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if leaf.ndim == 0 or leaf.shape[0] % size != 0:
            raise ValueError(
                f"the leading axis of every array must be a multiple of the {size} devices; got shape {leaf.shape}. "
                "Pad it, or use fewer devices."
            )
        return jax.device_put(jnp.asarray(leaf), sharding)

    return jtu.tree_map(put, tree)
