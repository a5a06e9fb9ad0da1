import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from implicit_core import dist


def run_on_eight_devices(code):
    # The number of virtual devices is read once, when JAX starts.
    prologue = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, jax.numpy as jnp, jax.random as jr, lineax as lx
        from jax.sharding import PartitionSpec as P
        from implicit_core import dist, krylov
        jax.config.update("jax_enable_x64", True)
        assert len(jax.devices()) == 8
        mesh = dist.mesh("i")
        n = 64
        coupling = jnp.linspace(0.1, 0.4, n)
        b = jr.normal(jr.key(0), (n,))
    """
    script = textwrap.dedent(prologue) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_global_view_equals_unsharded():
    run_on_eight_devices("""
        def operator(c):
            def mv(v):
                return 3 * v - jnp.roll(c * v, 1) - c * jnp.roll(v, -1)
            return lx.FunctionLinearOperator(mv, jax.eval_shape(lambda: b), lx.positive_semidefinite_tag)

        @jax.jit
        def solve(c, b):
            solution = lx.linear_solve(operator(c), b, krylov.PCG(1e-12), throw=False)
            return solution.value, solution.stats["num_steps"]

        loss = jax.jit(jax.grad(lambda c, b: jnp.sum(solve(c, b)[0] ** 3), (0, 1)))
        value, steps = solve(coupling, b)
        for devices in (jax.devices()[:1], jax.devices()[:2], jax.devices()):
            c, split = dist.shard((coupling, b), dist.mesh("i", devices))
            assert split.sharding.shard_shape((n,)) == (n // len(devices),)
            sharded, same_steps = solve(c, split)
            assert same_steps == steps
            assert sharded.sharding.is_equivalent_to(split.sharding, 1)
            assert jnp.allclose(jax.device_get(sharded), jax.device_get(value), rtol=1e-10)
            for ours, theirs in zip(loss(c, split), loss(coupling, b)):
                assert jnp.allclose(jax.device_get(ours), jax.device_get(theirs), rtol=1e-9)
        text = solve.lower(c, split).compile().as_text()
        assert "all-reduce" in text and "all-gather" not in text
    """)


def test_kernel_in_shard_map():
    run_on_eight_devices("""
        dot = lambda u, v: jax.lax.psum(krylov.tree_dot(u, v), "i")

        def local(d, b):
            # One dense row-sum across all devices, so that the operator couples the shards.
            mv = lambda v: d * v + jax.lax.psum(jnp.sum(v), "i")
            return krylov.pcg(mv, b, precond_mv=lambda r: r / d, rtol=1e-12, max_steps=200, dot=dot)

        d = jnp.linspace(1, 9, n)
        exact = jnp.linalg.solve(jnp.diag(d) + jnp.ones((n, n)), b)
        c, split = dist.shard((d, b), mesh)
        specs = dict(mesh=mesh, in_specs=(P("i"), P("i")), out_specs=(P("i"), P()))
        for scale in (1.0, 1e-200, 1e200):
            x, info = jax.jit(jax.shard_map(local, **specs))(c, scale * split)
            assert jnp.allclose(jax.device_get(x) / scale, exact, rtol=1e-9)
        reference, same = krylov.pcg(
            lambda v: d * v + jnp.sum(v), b, precond_mv=lambda r: r / d, rtol=1e-12, max_steps=200
        )
        assert abs(int(info.num_steps) - int(same.num_steps)) <= 1

        # Independent solves, one a device, of unequal length: no communication at all.
        def alone(d, b):
            x, info = krylov.pcg(lambda v: d * v, b, rtol=1e-12, max_steps=50)
            return x, info.num_steps[None]

        x, steps = jax.jit(jax.shard_map(alone, **{**specs, "out_specs": (P("i"), P("i"))}))(c, split)
        assert jnp.allclose(jax.device_get(x), b / d) and steps.shape == (8,)
    """)


def test_one_device_and_errors():
    mesh = dist.mesh("rows", jax.devices()[:1])
    assert mesh.axis_names == ("rows",)
    tree = dist.shard({"a": jnp.ones((4, 2)), "name": "b"}, mesh)
    assert tree["name"] == "b"
    assert tree["a"].sharding == jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    with pytest.raises(ValueError, match="multiple of the 1 devices"):
        dist.shard(jnp.array(1.0), mesh)
    with pytest.raises(ValueError, match="must be one of the mesh axes"):
        dist.shard(jnp.ones(2), mesh, "cols")
