"""Data sets, from files that the user has, as the papers' experiments use them."""

import gzip
import math
import os
import pathlib
import struct
from typing import NamedTuple

import numpy as np

from ._demo_extra import demo_extra
from ._graph_tuple import GraphsTuple


class Split(NamedTuple):
    """Images with their classes, for training and for the test, in NumPy.

    **Attributes:**

    - `x`, `test_x`: float32 in [0, 1]; a leading axis of images, then the shape of one.
    - `y`, `test_y`: int32, the class.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def digits(seed: int = 0) -> Split:
    """Split scikit-learn's 1,797 handwritten digits of 8 x 8 pixels at random, a fifth of them for the test.

    **Arguments:**

    - `seed`: of the split.

    **Returns:**

    A [`fixedpoint_eq.problems.Split`][] of flat images, 64 numbers each.

    **Raises:**

    `ImportError` without scikit-learn, which the extra `demo` brings.

    !!! Example

        ```python
        x, y, test_x, test_y = problems.digits()
        ```
    """
    with demo_extra("the digits"):
        from sklearn.datasets import load_digits
    # Arrays, not frames: the type checker cannot know, where pandas is installed.
    images, labels = (np.asarray(a) for a in load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    cut = len(x) // 5
    return Split(x[cut:], y[cut:], x[:cut], y[:cut])


def idx(folder: str | os.PathLike) -> Split:
    """Read MNIST, Fashion-MNIST or any other set in their format from a folder.

    **Arguments:**

    - `folder`: with the files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
        `t10k-labels-idx1-ubyte`, each as it is or with `.gz`.

    **Returns:**

    A [`fixedpoint_eq.problems.Split`][] of images of rows by columns.

    **Raises:**

    `FileNotFoundError` for a missing file, `ValueError` for one of another format, one that is cut short, or a number of
    labels that is not that of images.

    !!! Example

        ```python
        x, y, test_x, test_y = problems.idx("fashion-mnist")  # the data of arXiv:2309.02214, Table 1
        ```
    """
    parts = []
    for prefix in ("train", "t10k"):
        images = _read_idx(pathlib.Path(folder), f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(pathlib.Path(folder), f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ValueError(f"{folder} has {len(images)} images but {len(labels)} labels of `{prefix}`")
        parts += [(images / 255).astype(np.float32), labels.astype(np.int32)]
    return Split(*parts)


def _read_idx(folder: pathlib.Path, name: str, ndim: int) -> np.ndarray:
    path = _existing(folder, (name, f"{name}.gz"))
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    head = 4 + 4 * ndim
    if len(raw) < head or raw[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(f"{path} must be an idx file of bytes in {ndim} dimensions; it starts with {raw[:4].hex(' ')}")
    shape = struct.unpack(f">{ndim}I", raw[4:head])
    if len(raw) - head != math.prod(shape):
        raise ValueError(f"{path} announces {math.prod(shape)} bytes of shape {shape}; it holds {len(raw) - head}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def cifar10(folder: str | os.PathLike) -> Split:
    """Read CIFAR-10 in its binary version from a folder.

    **Arguments:**

    - `folder`: with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.

    **Returns:**

    A [`fixedpoint_eq.problems.Split`][] of images of shape (32, 32, 3).

    **Raises:**

    `FileNotFoundError` for a missing file, `ValueError` for one whose size is not that of whole images.

    !!! Example

        ```python
        x, y, test_x, test_y = problems.cifar10("cifar-10-batches-bin")
        ```
    """
    folder = pathlib.Path(folder)
    train = [_read_cifar(folder, f"data_batch_{k}.bin") for k in range(1, 6)]
    x, y = (np.concatenate(part) for part in zip(*train, strict=True))
    return Split(x, y, *_read_cifar(folder, "test_batch.bin"))


def _read_cifar(folder: pathlib.Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = _existing(folder, (name,))
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    record = 1 + 3 * 32 * 32
    if raw.size == 0 or raw.size % record:
        raise ValueError(f"{path} must hold records of {record} bytes; it has {raw.size}")
    raw = raw.reshape(-1, record)
    images = raw[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return (images / 255).astype(np.float32), raw[:, 0].astype(np.int32)


def tu_dataset(folder: str | os.PathLike, name: str | None = None) -> tuple[list[GraphsTuple], np.ndarray]:
    """Read a set of graphs to be classified in the format of TUDataset: PROTEINS, NCI1, MUTAG and their like.

    **Arguments:**

    - `folder`: with `NAME_A.txt`, `NAME_graph_indicator.txt`, `NAME_graph_labels.txt`, and `NAME_node_labels.txt` or
        `NAME_node_attributes.txt` if there are any.
    - `name`: `NAME`; by default that of the folder.

    **Returns:**

    The graphs, in NumPy, and their classes, counted from zero. Node features are labels as unit vectors, then
    attributes; a one where there are neither. Edge features are a one.

    **Raises:**

    `FileNotFoundError` for a missing file, `ValueError` for files that contradict each other.

    !!! Example

        ```python
        graphs, labels = problems.tu_dataset("PROTEINS")
        ```
    """
    folder = pathlib.Path(folder)
    name = folder.name if name is None else name
    read = lambda part, dtype: np.loadtxt(_existing(folder, (f"{name}_{part}.txt",)), dtype, delimiter=",", ndmin=2)
    graph_of = read("graph_indicator", np.int64)[:, 0] - 1
    _, labels = np.unique(read("graph_labels", np.int64)[:, 0], return_inverse=True)
    edges = read("A", np.int64) - 1
    counts = np.bincount(graph_of, minlength=len(labels))
    if len(counts) != len(labels) or np.any(np.diff(graph_of) < 0):
        raise ValueError(f"{name}: the nodes must be in the order of the {len(labels)} graphs that have labels")
    if edges.shape[1] != 2 or edges.min(initial=0) < 0 or edges.max(initial=0) >= len(graph_of):
        raise ValueError(f"{name}: edges must be pairs of the {len(graph_of)} nodes")
    features = []
    if (folder / f"{name}_node_labels.txt").exists():
        _, kind = np.unique(read("node_labels", np.int64)[:, 0], return_inverse=True)
        features.append(np.eye(kind.max() + 1, dtype=np.float32)[kind])
    if (folder / f"{name}_node_attributes.txt").exists():
        features.append(read("node_attributes", np.float32))
    features = np.concatenate(features, 1) if features else np.ones((len(graph_of), 1), np.float32)
    if len(features) != len(graph_of):
        raise ValueError(f"{name}: there must be a line of node features for each of {len(graph_of)} nodes")
    return _graphs(features, edges, graph_of, counts), labels.astype(np.int32)


def _graphs(features: np.ndarray, edges: np.ndarray, graph_of: np.ndarray, counts: np.ndarray) -> list[GraphsTuple]:
    first = np.concatenate([[0], np.cumsum(counts)])
    owner = graph_of[edges[:, 0]]
    if np.any(owner != graph_of[edges[:, 1]]):
        raise ValueError("an edge must stay within one graph")
    edges, owner = edges[order := np.argsort(owner, kind="stable")], owner[order]
    ends = np.searchsorted(owner, np.arange(len(counts) + 1))
    graphs = []
    for k, count in enumerate(counts):
        senders, receivers = (edges[ends[k] : ends[k + 1]].T - first[k]).astype(np.int32)
        n_node, n_edge = (np.array([n], np.int32) for n in (count, len(senders)))
        nodes = features[first[k] : first[k + 1]]
        ones = np.ones((len(senders), 1), np.float32)
        graphs.append(GraphsTuple(nodes, ones, receivers, senders, None, n_node, n_edge))
    return graphs


def _existing(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"there must be a file {' or '.join(names)} in {folder}")
