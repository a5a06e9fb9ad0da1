import random
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray


try:
    import hypothesis
except ModuleNotFoundError:  # the GPU session runs on whatever the machine has
    hypothesis = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fuzz`, which draws new random keys, and `--fuzz-seed`, which repeats such a run."""
    group = parser.getgroup("stationary")
    group.addoption("--fuzz", action="store_true", help="seed `getkey` at random instead of from the test's name")
    group.addoption("--fuzz-seed", type=int, default=None, help="repeat the `--fuzz` run that printed this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Set the numerical policy of every test run, before any test module is imported."""
    jax.config.update("jax_enable_x64", True)
    # Silent promotion and silent broadcasting are where wrong shapes hide.
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if hypothesis is not None:
        # The same examples on every run, and no time limit on them: the first one compiles.
        hypothesis.settings.register_profile(
            "stationary", derandomize=True, database=None, deadline=None, max_examples=15
        )
        hypothesis.settings.load_profile("stationary")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")
    if config.option.fuzz and config.option.fuzz_seed is None:
        config.option.fuzz_seed = random.SystemRandom().randrange(2**31)


def pytest_report_header(config: pytest.Config) -> str:
    """Print what a red run must be repeated with."""
    seed = config.option.fuzz_seed
    fuzz = "" if seed is None else f", repeat with --fuzz-seed={seed}"
    return f"jax {jax.__version__}, x64, strict promotion{fuzz}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where JAX sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    # Asking for the backend starts it, so only when somebody needs the answer.
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class _GetKey:
    def __init__(self, seed: int):
        self._seed = seed
        self._key = jr.key(seed)

    def __call__(self) -> PRNGKeyArray:
        self._key, out = jr.split(self._key)
        return out

    def __repr__(self) -> str:
        return f"getkey(seed={self._seed})"


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> _GetKey:
    """Return a function that gives a fresh key at each call, the same ones on every run of the same test."""
    # File name, not path: the keys must not depend on where the tests were copied to.
    name = f"{request.path.name}::{request.node.name}"
    seed = request.config.option.fuzz_seed or 0
    return _GetKey(zlib.crc32(f"{seed}:{name}".encode()))


@pytest.fixture
def rng(getkey: _GetKey) -> np.random.Generator:
    """NumPy's generator, seeded as `getkey` is: for JAX's draws XLA compiles half a second for each new shape."""
    return np.random.default_rng(np.asarray(jr.key_data(getkey())))


@pytest.fixture
def normal(rng: np.random.Generator) -> Callable[..., jax.Array]:
    """Draw from the normal distribution; a complex number has variance one, like JAX's."""

    def draw(shape: Any = (), dtype: Any = jnp.float64) -> jax.Array:
        value = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            value = (value + 1j * rng.normal(size=shape)) / np.sqrt(2)
        return jnp.asarray(value, dtype)

    return draw


@pytest.fixture
def uniform(rng: np.random.Generator) -> Callable[..., jax.Array]:
    """Draw from an interval."""

    def draw(shape: Any = (), low: float = -1.0, high: float = 1.0, dtype: Any = jnp.float64) -> jax.Array:
        return jnp.asarray(rng.uniform(low, high, shape), dtype)

    return draw


@pytest.fixture
def untyped():
    """Let wrong types reach the package's own checks, as they do for a user who has no run-time type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
