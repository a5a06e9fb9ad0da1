from collections.abc import Callable
from typing import Any

import beartype


_conf = beartype.BeartypeConf(strategy=beartype.BeartypeStrategy.On)


# A named function, because jaxtyping's import hook takes its checker by dotted name, and the call form
# (`beartype(conf=...)`) is mis-split once more than one package is listed (jaxtyping 0.3.11).
def typecheck(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Check annotations at run time, every item of every container. For `jaxtyping.install_import_hook`."""
    return beartype.beartype(conf=_conf)(fn)
