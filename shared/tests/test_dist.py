import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from implicit_core import dist


def test_global_view_equals_unsharded():
    # The number of virtual devices is read once, when JAX starts.
    script = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, jax.numpy as jnp, jax.random as jr, lineax as lx
        from implicit_core import dist, krylov
        jax.config.update("jax_enable_x64", True)
        assert len(jax.devices()) == 4
        n = 64
        coupling = jnp.linspace(0.1, 0.4, n)
        b = jr.normal(jr.key(0), (n,))

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
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


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
