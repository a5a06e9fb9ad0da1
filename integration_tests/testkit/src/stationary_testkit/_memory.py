from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


def max_live_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Return the bytes that `fn(*args)`, compiled, holds beyond its arguments: XLA's temporaries plus outputs.

    This is the compiler's own account, so it is exact and repeatable, and needs no run. Compare two sizes to show how
    memory grows: `max_live_bytes(f, x_large) < 2.2 * max_live_bytes(f, x_half)`.
    """
    dynamic, static = eqx.partition(args, eqx.is_array)
    compiled = jax.jit(lambda d: eqx.filter(fn(*eqx.combine(d, static)), eqx.is_array)).lower(dynamic).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise NotImplementedError(f"the {jax.default_backend()} compiler reports no memory use")
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
