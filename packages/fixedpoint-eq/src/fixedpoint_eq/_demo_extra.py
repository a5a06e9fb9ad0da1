import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def demo_extra(what: str) -> Iterator[None]:
    """Say, where an import fails, that `what` needs the extra."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{what} need the extra `demo`: pip install "fixedpoint-eq[demo]" ({error})') from error
