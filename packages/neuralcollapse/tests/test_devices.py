import subprocess
import sys
import textwrap


# Eight devices, whose number is read once, when JAX starts.
def test_eight_devices_give_the_statistics_of_one():
    script = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from neuralcollapse import ClassStats, NCCStats, metrics
        assert len(jax.devices()) == 8
        mesh = Mesh(np.array(jax.devices()), ("data",))
        k, d, n = 5, 6, 400

        def apart(a, b):
            return np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)

        for mean, std in ((0.0, 1.0), (10.0, 1e-3), (1.0, 1e-6)):
            r = np.random.default_rng(0)
            means = mean + r.normal(size=(k, d))
            # Sorted by class: most devices never see most classes.
            y = np.sort(r.integers(0, k, n)).astype(np.int32)
            x = (means[y] + std * r.normal(size=(n, d))).astype(np.float32)
            wide = x.astype(float)
            true = np.stack([wide[y == c].mean(0) for c in range(k)])
            residual = wide - true[y]
            weight = r.normal(size=(k, d)).astype(np.float32)
            for within, rank in (("full", None), ("diag", None), ("trace", None), ("low-rank", d)):

                def gather(x, y):
                    halves = x.reshape(2, -1, d), y.reshape(2, -1)
                    start = ClassStats.init(k, d, within, rank=rank).update(halves[0][0], halves[1][0])
                    return start.update(halves[0][1], halves[1][1]).psum("data")

                stats = jax.jit(jax.shard_map(gather, mesh=mesh, in_specs=P("data"), out_specs=P()))(x, y)
                stats = jax.device_get(stats)
                np.testing.assert_array_equal(stats.counts, np.bincount(y, minlength=k))
                assert apart(stats.means(), true) < 1e-6
                spread = np.array([(residual[y == c] ** 2).sum() for c in range(k)])
                assert apart(stats.spread, spread) < 1e-6, (within, mean)
                if within == "diag":
                    assert apart(stats.within_diagonal(), (residual**2).mean(0)) < 1e-6
                if within in ("full", "low-rank"):
                    assert apart(stats.within_cov(), residual.T @ residual / n) < (1e-6 if within == "full" else 2e-6)

            def agree(x, y):
                return NCCStats.init(stats, weight).update(x, y).psum("data")

            ncc = jax.jit(jax.shard_map(agree, mesh=mesh, in_specs=P("data"), out_specs=P()))(x, y)
            single = NCCStats.init(stats, weight).update(x, y)
            np.testing.assert_array_equal(ncc.counts, single.counts)
            # The global view: arrays on the mesh under jit.
            split = jax.device_put((x, y), NamedSharding(mesh, P("data")))
            view = jax.device_get(jax.jit(lambda x, y: ClassStats.init(k, d).update(x, y))(*split))
            assert apart(view.within_cov(), residual.T @ residual / n) < 1e-6
            assert np.isfinite(metrics.report(view, weight).to_dict()["nc1_pinv"])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
