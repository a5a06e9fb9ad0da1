"""The named problems have the properties that they claim, and files are read, or refused, for what they are."""

import gzip
import struct

import fixedpoint_eq as fpe
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fixedpoint_eq import graph, problems
from stationary_testkit import tree_allclose


@pytest.mark.parametrize("symmetric", [True, False])
def test_tanh_deq_is_the_contraction_that_it_says(symmetric, getkey):
    p = problems.tanh_deq(getkey(), 12, 5, norm=0.9, symmetric=symmetric, dtype=jnp.float32)
    W = np.asarray(p.args["W"])
    assert np.allclose(W, W.T) == symmetric
    assert np.linalg.norm(W, 2) == pytest.approx(0.9, rel=1e-5)
    assert p.contraction == 0.9
    solution = fpe.solve(p.fn, p.z0, p.args, fpe.Picard(1e-6), batch_axis=p.batch_axis, contraction=p.contraction)
    assert solution.value.shape == (5, 12)
    assert solution.value.dtype == jnp.float32
    assert tree_allclose(jnp.tanh(solution.value @ W.T + p.args["x"]), solution.value, rtol=1e-5, atol=1e-5)
    assert problems.tanh_deq(getkey(), 4, 1, norm=1.5).contraction is None


def test_the_paper_size_has_the_known_counts():
    p = problems.tanh_deq(jr.key(0), dtype=jnp.float32)
    count = lambda solver: int(jnp.max(fpe.solve(p.fn, p.z0, p.args, solver, batch_axis=0).stats["num_steps"]))
    assert count(fpe.Picard(1e-5, 0.0)) == pytest.approx(71, abs=5)
    assert count(fpe.Anderson(1e-5, 0.0)) <= 30
    assert count(fpe.Broyden(1e-5, 0.0)) <= 35


def test_affine_has_its_fixed_point(getkey):
    p = problems.affine(getkey(), 8)
    assert tree_allclose(
        fpe.solve(p.fn, p.z0, p.args, fpe.Anderson(1e-12, 1e-13)).value, p.value, rtol=1e-9, atol=1e-11
    )


def test_complex_field_stays_where_it_contracts(getkey):
    p = problems.complex_field(getkey(), 6, dtype=jnp.complex128)
    value = fpe.solve(p.fn, p.z0, p.args, fpe.Picard(1e-12)).value
    assert jnp.max(jnp.abs(value)) <= 0.75
    flat = lambda z: p.fn(z.reshape(6, 6), p.args).ravel()
    jacobian = jax.jacfwd(flat, holomorphic=True)(value.ravel())
    assert jnp.max(jnp.sum(jnp.abs(jacobian), axis=1)) <= 0.8 + 1e-12
    assert fpe.diagnostics.is_holomorphic(p.fn, value, p.args)


@pytest.mark.parametrize("arguments", [{"norm": 0.0}, {"size": 0}, {"input_scale": -1.0}, {"batch": 0}])
def test_sizes_must_be_positive(arguments, getkey):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"`{name}` must be positive; got"):
        problems.tanh_deq(getkey(), **arguments)


def test_digits():
    split = problems.digits(3)
    assert (len(split.x), len(split.test_x)) == (1438, 359)
    assert split.x.min() == 0
    assert split.x.max() == 1
    assert set(split.y) == set(range(10))
    assert not np.array_equal(split.y, problems.digits(4).y)


def idx_file(array, compress=False):
    raw = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    return gzip.compress(raw) if compress else raw


def write_idx(folder, n_test=2, compress=False):
    rng, ending = np.random.default_rng(0), ".gz" if compress else ""
    sets = {}
    for prefix, n in (("train", 4), ("t10k", n_test)):
        images, labels = rng.integers(0, 256, (n, 3, 5), np.uint8), rng.integers(0, 10, n).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte{ending}").write_bytes(idx_file(images, compress))
        (folder / f"{prefix}-labels-idx1-ubyte{ending}").write_bytes(idx_file(labels, compress))
        sets[prefix] = images, labels
    return sets


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files(tmp_path, compress):
    sets = write_idx(tmp_path, compress=compress)
    split = problems.idx(tmp_path)
    assert np.array_equal(np.rint(split.x * 255), sets["train"][0])
    assert np.array_equal(split.test_y, sets["t10k"][1])
    assert split.x.dtype == np.float32


def test_idx_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        problems.idx(tmp_path)
    write_idx(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match="announces 2 bytes of shape \\(2,\\); it holds 1"):
        problems.idx(tmp_path)
    path.write_bytes(idx_file(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        problems.idx(tmp_path)
    path.write_bytes(b"no idx file")
    with pytest.raises(ValueError, match="must be an idx file of bytes in 1 dimensions"):
        problems.idx(tmp_path)


def test_cifar10(tmp_path):
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(rng.integers(0, 10, (2, 3073), np.uint8).tobytes())
    split = problems.cifar10(tmp_path)
    assert split.x.shape == (10, 32, 32, 3)
    raw = np.frombuffer((tmp_path / "test_batch.bin").read_bytes(), np.uint8).reshape(2, 3073)
    assert np.array_equal(split.test_y, raw[:, 0])
    # The file has one plane a colour; a green pixel of the second row.
    assert np.rint(split.test_x[1, 1, 0, 1] * 255) == raw[1, 1 + 1024 + 32]
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="records of 3073 bytes; it has 5"):
        problems.cifar10(tmp_path)


def test_tu_dataset(tmp_path):
    folder = tmp_path / "TINY"
    folder.mkdir()
    files = {
        "A": "1, 2\n2, 1\n4, 5\n3, 5\n",
        "graph_indicator": "1\n1\n2\n2\n2\n",
        "graph_labels": "1\n-1\n",
        "node_labels": "7\n9\n7\n7\n9\n",
        "node_attributes": "0.5\n1.5\n2.5\n3.5\n4.5\n",
    }
    for name, text in files.items():
        (folder / f"TINY_{name}.txt").write_text(text)
    graphs, labels = problems.tu_dataset(folder)
    assert labels.tolist() == [1, 0]
    assert [int(g.n_node[0]) for g in graphs] == [2, 3]
    assert graphs[1].senders.tolist() == [1, 0]
    assert graphs[1].receivers.tolist() == [2, 2]
    assert np.array_equal(graphs[1].nodes, [[1, 0, 2.5], [1, 0, 3.5], [0, 1, 4.5]])
    # They are what the graph solvers take.
    assert int(graph.batch(graphs).n_node.sum()) == 5
    (folder / "TINY_A.txt").write_text("1, 3\n")
    with pytest.raises(ValueError, match="within one graph"):
        problems.tu_dataset(folder)
    (folder / "TINY_graph_labels.txt").write_text("1\n")
    with pytest.raises(ValueError, match="in the order of the 1 graphs"):
        problems.tu_dataset(folder)


def test_missing_packages_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"fixedpoint-eq\[demo\]"):
        problems.digits()
