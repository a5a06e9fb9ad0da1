import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np


SCRIPT = """
    import json, sys
    import jax
    path, port, num_processes, process = sys.argv[1], *map(int, sys.argv[2:])
    results = {}
    jax.config.update("jax_enable_x64", True)
    if num_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process)
    import jax.numpy as jnp, lineax as lx, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from implicit_core import RESULTS, dist, krylov

    assert jax.process_count() == num_processes and len(jax.devices()) == 4
    mesh = dist.mesh("i")
    whole = NamedSharding(mesh, P())

    def put(array, spec=P("i")):
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    def record(name, fn, *args):
        # All of the output on every device, so on every process.
        out = jax.tree.leaves(jax.jit(fn, out_shardings=whole)(*args))
        results[name] = [np.ravel(leaf.addressable_data(0)).tolist() for leaf in out]

    def with_gradient(solve):
        def loss(*args):
            value, other = solve(*args)
            return jnp.sum(jnp.sin(value)), (value, other)
        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    rng = np.random.default_rng(0)
    n = 32
    d, theta, b = put(np.linspace(1, 9, n)), put(np.array(0.7), P()), put(rng.normal(size=n))

    def psum_cg(d, theta, b):
        def local(d, theta, b):
            out = dist.cg(lambda v: d * v + theta * jax.lax.psum(jnp.sum(v), "i"), b, axis="i", rtol=1e-13)
            return out.value, out.result == RESULTS.successful
        specs = dict(in_specs=(P("i"), P(), P("i")), out_specs=(P("i"), P()))
        return jax.shard_map(local, mesh=mesh, **specs)(d, theta, b)

    def global_view(d, theta, b):
        mv = lambda v: d * v + theta * jnp.sum(v)
        operator = lx.FunctionLinearOperator(mv, jax.eval_shape(lambda: b), lx.positive_semidefinite_tag)
        solution = lx.linear_solve(operator, b, krylov.PCG(1e-13), throw=False)
        return solution.value, solution.stats["result"] == RESULTS.successful

    def experts(A, shift, y):
        def solve(A, shift, y):
            fn = lambda w, args: jnp.tanh(args[0] @ w) + 0.1 * shift * w[0] - args[1]
            out = dist.levenberg_marquardt(fn, jnp.zeros(3), (A, y), ridge=1e-3)
            return out.value, out.result == RESULTS.successful
        specs = dict(in_specs=(P("i"), P(), P("i")), out_specs=P("i"))
        return jax.shard_map(jax.vmap(solve, (0, None, 0)), mesh=mesh, **specs)(A, shift, y)

    record("psum_cg", with_gradient(psum_cg), d, theta, b)
    record("global_view", with_gradient(global_view), d, theta, b)
    record("experts", with_gradient(experts), put(rng.normal(size=(8, 12, 3))), theta, put(rng.normal(size=(8, 12)) / 3))
    if process == 0:
        with open(path, "w") as file:
            json.dump(results, file)
"""


def launch(folder, num_processes, port=0):
    """Run the script in processes that share four devices; return what it computes, or `None` if the port is taken."""
    folder.mkdir()
    devices = f"--xla_force_host_platform_device_count={4 // num_processes}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    out, logs = folder / "out.json", [folder / f"log{i}" for i in range(num_processes)]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(out), str(port), str(num_processes)]
    with contextlib.ExitStack() as stack:
        children = []
        for i, log in enumerate(logs):
            # Files, not pipes: a full pipe would stop one process, and with it the other.
            file = stack.enter_context(log.open("w"))
            children.append(subprocess.Popen([*command, str(i)], stdout=file, stderr=subprocess.STDOUT, env=env))
            stack.callback(children[-1].wait)
            stack.callback(children[-1].kill)
        deadline = time.monotonic() + 300
        # One that fails leaves the other waiting for it.
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        failed = any(child.poll() != 0 for child in children)
    text = "\n".join(f"process {i}:\n{log.read_text()}" for i, log in enumerate(logs))
    if failed and ("Failed to start RPC server" in text or "already in use" in text):
        return None
    assert not failed, text
    return json.loads(out.read_text())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_give_the_digits_of_one(tmp_path):
    one = launch(tmp_path / "one", 1)
    # Between asking for a port and using it, another program may take it: once more then.
    two = launch(tmp_path / "two", 2, free_port()) or launch(tmp_path / "again", 2, free_port())
    assert one is not None
    assert two is not None
    assert sorted(one) == sorted(two) == ["experts", "global_view", "psum_cg"]
    for name, expected in one.items():
        # The loss, the value, whether all went well, and three gradients.
        assert len(expected) == 6
        assert np.all(expected[2])
        for ours, theirs in zip(two[name], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)
    # Two ways to solve the same system.
    for ours, theirs in zip(one["psum_cg"], one["global_view"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
