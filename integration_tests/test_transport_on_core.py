import math
import os
import subprocess
import sys

import jax.numpy as jnp
import ot_sns
import pytest
from implicit_core.certify import Certificate
from implicit_core.implicit import ImplicitAdjoint
from implicit_core.krylov import PCG


# Four devices must be asked for before JAX starts, hence a process of its own.
SHARDED = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, ot_sns
from implicit_core import dist

jax.config.update("jax_enable_x64", True)
cost = jnp.asarray(np.random.default_rng(0).uniform(size=(64, 80)))

@eqx.filter_jit
def solve(cost):
    solution = ot_sns.solve(ot_sns.EntropicOT(ot_sns.DenseCost(cost), epsilon=1e-2))
    return solution.f, solution.g, solution.value

mesh = dist.mesh("rows")
assert mesh.size == 4, mesh
sharded = dist.shard(cost, mesh, "rows")
assert len(sharded.sharding.device_set) == 4
for ours, alone in zip(solve(sharded), solve(cost), strict=True):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(alone), rtol=0, atol=1e-9)
print("equal on", mesh.size, "devices")
"""


def test_transport_on_a_cost_that_is_spread_over_devices():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 4 devices" in done.stdout


def test_transport_speaks_the_language_of_the_core():
    problem = ot_sns.EntropicOT(ot_sns.DenseCost(jnp.array([[0.0, 1.0], [1.0, 0.0]])), epsilon=0.1)
    solution = ot_sns.solve(problem, adjoint=ImplicitAdjoint(PCG(rtol=1e-10, mode="soft")))
    certificate = solution.certificate()
    assert isinstance(certificate, Certificate)
    assert certificate.kind == "proved"
    # Two atoms each, by hand: P_11 = 1 / (2 (1 + e^{-1/eps})).
    assert float(solution.matrix()[0, 0]) == pytest.approx(0.5 / (1 + math.exp(-10.0)), rel=1e-9)
