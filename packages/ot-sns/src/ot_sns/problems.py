"""Named transport problems: generators with fixed seeds, and their exact or reference numbers where they exist."""

import contextlib
import functools as ft
import gzip
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Float, UInt8


__all__ = [
    "NamedProblem",
    "color_transfer",
    "dens1d",
    "digit_pair",
    "digits_l1",
    "digits_l2",
    "gauss2d",
    "lap",
    "mnist_pair",
    "standard",
]


_PAPER_EPSILON = 1 / 1200  # "η = 1200" of arXiv:2401.12253, for costs scaled to [0, 1]

# ⟨C, P⟩ of the entropic plan (two of ours, regot's SSNS and mdot_tnt agree on these digits) and the value of the linear programme
# (network simplex).
_KNOWN: dict[str, dict[str, float]] = {
    "LAP-500": {"linear_cost": 0.0034504129, "lp_value": 0.0032219526},
    "DENS1D-500": {"linear_cost": 0.1207169856, "lp_value": 0.1202413864},
    "DIGITS-L2": {"linear_cost": 0.0079993180, "lp_value": 0.0073984224},
    "DIGITS-L1": {"linear_cost": 0.0634247910, "lp_value": 0.0634247683},
    "GAUSS2D-1000": {"linear_cost": 0.0157795460, "lp_value": 0.0149478873},
    "GAUSS2D-2000": {"linear_cost": 0.0157268625, "lp_value": 0.0148365013},
    "LAP-2000": {"linear_cost": 0.0012988533, "lp_value": 0.0008368851},
    "GAUSS2D-500-eps0.01": {"linear_cost": 0.0222914714, "lp_value": 0.0138106839},
    "GAUSS2D-500": {"linear_cost": 0.0145814055, "lp_value": 0.0138106839},
    "GAUSS2D-500-eps0.0001": {"linear_cost": 0.0138521978, "lp_value": 0.0138106839},
}


class NamedProblem(eqx.Module):
    r"""Hold one transport problem as NumPy arrays in float64: $\min_P \langle C, P\rangle + \varepsilon \sum P(\log P - 1)$.

    The cost is either a matrix (`cost`) or the squared Euclidean distance of two point clouds (`x`, `y`).

    ```python
    from ot_sns import problems

    named = problems.lap(500)
    named.cost.shape, named.known["linear_cost"]  # ((500, 500), 0.0034504129)
    ```

    **Attributes:**

    - `name`: the name under which the benchmarks list the problem.
    - `a`: row weights, positive, of sum one.
    - `b`: column weights, positive, of sum one.
    - `epsilon`: strength of the regularisation, in the units of the cost.
    - `cost`: the cost matrix, or `None` when the points define it.
    - `x`: source points, or `None`.
    - `y`: target points, or `None`.
    - `images`: the pictures from which the problem was made (source, target), or `None`.
    - `known`: reference numbers: `linear_cost` is $\langle C, P\rangle$ of the entropic plan, `lp_value` the optimal
        value without regularisation.
    """

    name: str = eqx.field(static=True)
    a: Float[np.ndarray, " n"]
    b: Float[np.ndarray, " m"]
    epsilon: float
    cost: Float[np.ndarray, "n m"] | None = None
    x: Float[np.ndarray, "n d"] | None = None
    y: Float[np.ndarray, "m d"] | None = None
    images: tuple[np.ndarray, np.ndarray] | None = None
    known: dict[str, float] = eqx.field(default_factory=dict)

    def __check_init__(self):
        if (self.cost is None) != (self.x is not None and self.y is not None):
            raise ValueError("Give either `cost` or both `x` and `y`, not both and not neither.")

    @property
    def shape(self) -> tuple[int, int]:
        """The number of source and target atoms."""
        return self.a.shape[0], self.b.shape[0]

    def cost_matrix(self) -> Float[np.ndarray, "n m"]:
        """Return the cost as a matrix, computed from the points where they define it.

        **Returns:**

        The matrix $C$.
        """
        if self.cost is not None:
            return self.cost
        assert self.x is not None
        assert self.y is not None
        return _squared_distances(self.x, self.y)

    def problem(self) -> Any:
        """Build the [`ot_sns.EntropicOT`][] of these arrays, in JAX's default floating-point type.

        **Returns:**

        The problem, ready for [`ot_sns.solve`][].
        """
        import jax.numpy as jnp

        from . import DenseCost, EntropicOT, PointCloud

        as_jax = ft.partial(jnp.asarray, dtype=jnp.result_type(float))
        if self.cost is None:
            geometry = PointCloud(as_jax(self.x), as_jax(self.y))
        else:
            geometry = DenseCost(as_jax(self.cost))
        return EntropicOT(geometry, as_jax(self.a), as_jax(self.b), epsilon=self.epsilon)


def lap(n: int = 500) -> NamedProblem:
    r"""Make the random linear assignment problem of arXiv:2401.12253: $C_{ij} \sim U[0, 1]$, uniform weights.

    **Arguments:**

    - `n`: number of rows and of columns.

    **Returns:**

    The problem `LAP-n` at $\varepsilon = 1/1200$.
    """
    cost = np.random.default_rng(0).uniform(size=(n, n))
    return _named(f"LAP-{n}", cost, _uniform(n), _uniform(n), _PAPER_EPSILON)


def gauss2d(n: int = 1000, epsilon: float = 1e-3) -> NamedProblem:
    r"""Make a transport problem between two samples of plane Gaussians, $N(0, I)$ and $N(\tfrac12 1, A^\top A)$.

    **Arguments:**

    - `n`: points per sample.
    - `epsilon`: strength of the regularisation; the squared distances are divided by their maximum.

    **Returns:**

    The problem `GAUSS2D-n`, with `epsilon` in its name unless it is 1e-3.
    """
    r = np.random.default_rng(0)
    x = r.normal(size=(n, 2))
    y = r.normal(size=(n, 2)) @ np.array([[1, 0.6], [0, 0.7]]) + 0.5
    cost = _squared_distances(x, y)
    name = f"GAUSS2D-{n}" if epsilon == 1e-3 else f"GAUSS2D-{n}-eps{epsilon:g}"
    return _named(name, cost / cost.max(), _uniform(n), _uniform(n), epsilon)


def dens1d(n: int = 500) -> NamedProblem:
    r"""Make the one-dimensional densities of SSNS: exponential against $0.2 N(1, 0.2^2) + 0.8 N(3, 0.5^2)$ on $[0, 5]$.

    **Arguments:**

    - `n`: number of grid points.

    **Returns:**

    The problem `DENS1D-n` at $\varepsilon = 10^{-3}$, squared distance divided by its maximum.
    """
    x = np.linspace(0, 5, n)
    a = np.exp(-x)
    b = 0.2 * _normal_density(x, 1.0, 0.2) + 0.8 * _normal_density(x, 3.0, 0.5)
    cost = (x[:, None] - x[None]) ** 2
    return _named(f"DENS1D-{n}", cost / cost.max(), a / a.sum(), b / b.sum(), 1e-3)


def digits_l2() -> NamedProblem:
    """Make `DIGITS-L2`: scikit-learn's digit images 0 and 1 at 28 × 28, squared Euclidean grid cost.

    **Returns:**

    The problem at ε = 1/1200, the stand-in for the MNIST pair of arXiv:2401.12253.
    """
    return digit_pair(0, 1, metric="l2")


def digits_l1() -> NamedProblem:
    """Make `DIGITS-L1`: as [`ot_sns.problems.digits_l2`][] with the ℓ1 grid cost, whose exact plan is not unique.

    **Returns:**

    The problem at ε = 1/1200.
    """
    return digit_pair(0, 1, metric="l1")


def digit_pair(
    i: int,
    j: int,
    size: int = 28,
    *,
    metric: Literal["l1", "l2"] = "l2",
    background: float = 0.01,
    epsilon: float = _PAPER_EPSILON,
) -> NamedProblem:
    """Make a transport problem between two of scikit-learn's bundled digit images (8 × 8, upsampled).

    **Arguments:**

    - `i`: index of the source image.
    - `j`: index of the target image.
    - `size`: edge of the upsampled image; the problem has `size**2` atoms a side.
    - `metric`: grid cost: `"l2"` is the squared Euclidean distance, `"l1"` the sum of absolute differences.
    - `background`: share of the mass that is spread uniformly, so that every weight is positive.
    - `epsilon`: strength of the regularisation; the cost is divided by its maximum.

    **Returns:**

    The problem, with the two upsampled images.
    """
    with _demo_extra():
        from scipy.ndimage import zoom
        from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = digits.images
    source, target = (np.clip(np.asarray(zoom(images[k] / 16, size / 8, order=1)), 0, None) for k in (i, j))
    default = (i, j, size, background, epsilon) == (0, 1, 28, 0.01, _PAPER_EPSILON)
    name = f"DIGITS-{metric.upper()}" if default else f"DIGITS-{metric.upper()}-{i}-{j}-{size}"
    return _image_pair(name, source, target, metric, background, epsilon)


def mnist_pair(
    path: str | os.PathLike,
    i: int,
    j: int,
    *,
    metric: Literal["l1", "l2"] = "l2",
    background: float = 0.01,
    epsilon: float = _PAPER_EPSILON,
) -> NamedProblem:
    """Make a transport problem between two images of a file in MNIST's idx format, the paper's own data.

    **Arguments:**

    - `path`: an idx file of images, such as `train-images-idx3-ubyte` or the same with `.gz`.
    - `i`: index of the source image.
    - `j`: index of the target image.
    - `metric`: grid cost: `"l2"` is the squared Euclidean distance, `"l1"` the sum of absolute differences.
    - `background`: share of the mass that is spread uniformly, so that every weight is positive.
    - `epsilon`: strength of the regularisation; the cost is divided by its maximum.

    **Returns:**

    The problem, with the two images.

    **Raises:**

    - `ValueError`: if the file is not an idx file of images, is cut short, or has no image of that index.
    """
    source, target = _read_idx_images(pathlib.Path(path), (i, j))
    return _image_pair(f"MNIST-{metric.upper()}-{i}-{j}", source / 255, target / 255, metric, background, epsilon)


def color_transfer(num_points: int = 2000, seed: int = 0, *, eta: float = 1200.0) -> NamedProblem:
    """Make the colour-transfer problem between scikit-learn's two bundled photographs, a temple and a flower.

    **Arguments:**

    - `num_points`: pixels drawn from each photograph, without replacement.
    - `seed`: seed of the draw.
    - `eta`: strength of the regularisation in the paper's form: ε is the largest squared distance over `eta`.

    **Returns:**

    The problem with point clouds `x` and `y` of RGB values in [0, 1], and the two photographs.

    **Raises:**

    - `ValueError`: if a photograph has fewer pixels than `num_points`.
    """
    with _demo_extra():
        from sklearn.datasets import load_sample_images

        photographs: Any = load_sample_images()
    images = [np.asarray(image) for image in photographs.images]
    r = np.random.default_rng(seed)
    clouds = []
    for image in images:
        pixels = image.reshape(-1, 3)
        if not 1 <= num_points <= len(pixels):
            raise ValueError(f"`num_points` must be between 1 and {len(pixels)}; got {num_points}.")
        clouds.append(pixels[r.choice(len(pixels), size=num_points, replace=False)] / 255)
    x, y = clouds
    largest = max(_squared_distances(x[k : k + 512], y).max() for k in range(0, num_points, 512))
    return NamedProblem(
        name=f"COLOR-{num_points}",
        a=_uniform(num_points),
        b=_uniform(num_points),
        epsilon=float(largest / eta),
        x=x,
        y=y,
        images=(images[0], images[1]),
    )


def standard() -> dict[str, Callable[[], NamedProblem]]:
    """List the ten problems of the benchmark table, in its order.

    **Returns:**

    Name to generator; nothing is generated until a generator is called.
    """
    return {
        "LAP-500": ft.partial(lap, 500),
        "DENS1D-500": dens1d,
        "DIGITS-L2": digits_l2,
        "DIGITS-L1": digits_l1,
        "GAUSS2D-1000": ft.partial(gauss2d, 1000),
        "GAUSS2D-2000": ft.partial(gauss2d, 2000),
        "LAP-2000": ft.partial(lap, 2000),
        "GAUSS2D-500-eps0.01": ft.partial(gauss2d, 500, 1e-2),
        "GAUSS2D-500": ft.partial(gauss2d, 500),
        "GAUSS2D-500-eps0.0001": ft.partial(gauss2d, 500, 1e-4),
    }


def _named(name: str, cost: np.ndarray, a: np.ndarray, b: np.ndarray, epsilon: float, images: Any = None):
    return NamedProblem(name=name, a=a, b=b, epsilon=epsilon, cost=cost, images=images, known=_KNOWN.get(name, {}))


def _image_pair(name, source, target, metric, background, epsilon) -> NamedProblem:
    if metric not in ("l1", "l2"):
        raise ValueError(f"`metric` must be 'l1' or 'l2'; got {metric!r}.")
    if not 0 < background < 1:
        raise ValueError(f"`background` must lie strictly between 0 and 1, or some weights are zero; got {background}.")
    rows, columns = source.shape
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    offsets = np.abs(grid[:, None] - grid[None]) / max(rows, columns)
    cost = (offsets**2).sum(-1) if metric == "l2" else offsets.sum(-1)
    a, b = (_weights(image, background) for image in (source, target))
    return _named(name, cost / cost.max(), a, b, epsilon, (source, target))


def _weights(image: np.ndarray, background: float) -> Float[np.ndarray, " n"]:
    total = image.sum()
    if total <= 0:
        raise ValueError("The image is black: it has no mass to transport.")
    mixed = (1 - background) * image / total + background / image.size
    return (mixed / mixed.sum()).ravel()


def _uniform(n: int) -> Float[np.ndarray, " n"]:
    return np.full(n, 1 / n)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n m"]:
    return sum((np.subtract.outer(x[:, k], y[:, k]) ** 2 for k in range(x.shape[1])), np.zeros((len(x), len(y))))


def _normal_density(x: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


def _read_idx_images(path: pathlib.Path, indices: tuple[int, ...]) -> list[UInt8[np.ndarray, "rows columns"]]:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 16 or raw[:4] != b"\x00\x00\x08\x03":
        raise ValueError(f"{path} is not an idx file of images: it must start with the bytes 00 00 08 03.")
    count, rows, columns = struct.unpack(">3I", raw[4:16])
    if len(raw) != 16 + count * rows * columns:
        raise ValueError(f"{path} announces {count} images of {rows} × {columns} but holds {len(raw) - 16} bytes.")
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"{path} holds {count} images; there is no image {index}.")
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(count, rows, columns)
    return [images[index] for index in indices]


@contextlib.contextmanager
def _demo_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f'This problem needs the extra `demo`: pip install "ot-sns[demo]". ({error})') from error
