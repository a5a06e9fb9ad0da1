import re
import subprocess
import sys
import textwrap


COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\(")


def run_on_four_devices(code):
    # The number of virtual devices is read once, when JAX starts.
    prologue = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, jax.numpy as jnp, jax.random as jr, numpy as np
        from jax.sharding import PartitionSpec as P
        from implicit_core import RESULTS, dist, krylov
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        assert len(jax.devices()) == 4
        mesh = dist.mesh("i")

        def distance(x, y):
            x, y = (jnp.concatenate([jnp.ravel(jax.device_get(leaf)) for leaf in jax.tree.leaves(z)]) for z in (x, y))
            return jnp.linalg.norm(x - y) / jnp.linalg.norm(y)
    """
    script = textwrap.dedent(prologue) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cg_and_its_derivatives():
    run_on_four_devices("""
        n = 32
        d, b = jnp.linspace(1, 9, n), jr.normal(jr.key(0), (n,))
        args = (d, jnp.array(0.7), jnp.linspace(0, 1, 8), b)
        order = jnp.arange(8)[::-1]

        # `d` and `b` are split; `theta` and `local` are the same on all devices; `order` holds integers.
        def global_solve(d, theta, local, b):
            return jnp.linalg.solve(jnp.diag(d + jnp.tile(local[order], 4)) + theta * jnp.ones((n, n)), b)

        def solve(d, theta, local, b):
            mv = lambda v: (d + local[order]) * v + theta * jax.lax.psum(jnp.sum(v), "i")
            out = dist.cg(mv, b, axis="i", precond_mv=lambda v: v / d, rtol=1e-13)
            return out.value, (out.result, out.stats)

        specs = dict(mesh=mesh, in_specs=(P("i"), P(), P(), P("i")), out_specs=(P("i"), P()))
        tangents = tuple(jr.normal(jr.key(i), x.shape) for i, x in enumerate(args))

        # Reverse, forward, and forward over reverse.
        def derivatives(fn):
            def run(*args):
                loss = lambda *args: (lambda out: (jnp.sum(out[0] ** 3), out))(fn(*args))
                gradient, by_gradient, out = jax.jvp(jax.grad(loss, (0, 1, 2, 3), has_aux=True), args, tangents, has_aux=True)
                return gradient, by_gradient, jax.jvp(lambda *args: fn(*args)[0], args, tangents)[1], out
            return jax.jit(run)(*args)

        exact = derivatives(lambda *args: (global_solve(*args), None))
        for check_vma in (True, False):
            ours = derivatives(jax.shard_map(solve, **specs, check_vma=check_vma))
            result, stats = ours[-1][1]
            assert result == RESULTS.successful and 0 < int(stats["num_steps"]) < 20
            assert stats["certificate"].true_relres < 1e-12
            for x, y in zip(jax.tree.leaves((ours[:-1], ours[-1][0])), jax.tree.leaves(exact)):
                assert distance(x, y) < 1e-10, (check_vma, x, y)
    """)


def test_cg_says_how_it_ended():
    run_on_four_devices("""
        d, b = jnp.linspace(1, 9, 32), jr.normal(jr.key(0), (32,))
        specs = dict(mesh=mesh, in_specs=(P("i"), P("i"), P()), out_specs=(P("i"), P()))

        @jax.jit
        @lambda fn: jax.shard_map(fn, **specs)
        def solve(d, b, max_steps):
            out = dist.cg(lambda v: d * v, b, axis="i", max_steps=max_steps)
            return out.value, (out.result, out.stats)

        for scale in (1e-200, 1e200, 0.0):
            x, (result, stats) = solve(d, scale * b, 100)
            assert jnp.allclose(jax.device_get(x), scale * b / d, rtol=1e-10)
            assert result == RESULTS.successful
            assert (stats["num_steps"] == 0) == (scale == 0)
            assert stats["certificate"].true_relres <= 1e-11
        for args, expected in (
            ((d - 5, b, 100), "indefinite"),
            ((d * jnp.nan, b, 100), "nonfinite"),
            ((d, b, 3), "max_steps_reached"),
        ):
            x, (result, stats) = solve(*args)
            assert result == getattr(RESULTS, expected)
            assert jnp.all(jnp.isfinite(jax.device_get(x)))
        true = jnp.linalg.norm(b - d * jax.device_get(x)) / jnp.linalg.norm(b)
        assert abs(stats["certificate"].true_relres - true) < 1e-12

        for wrong, error in ((jnp.arange(32), TypeError), ((), ValueError)):
            try:
                jax.shard_map(lambda b: dist.cg(lambda v: v, b, axis="i").value, mesh=mesh, in_specs=P("i"), out_specs=P("i"))(wrong)
            except error as e:
                assert "`b`" in str(e) or "at least one array" in str(e)
            else:
                raise AssertionError("no error")

        # The bare loop, and independent solves of unequal length, one a device: no communication at all.
        def alone(d, b):
            x, info = krylov.pcg(lambda v: d * v, b, rtol=1e-12, max_steps=50)
            return x, info.num_steps[None]

        specs = dict(mesh=mesh, in_specs=(P("i"), P("i")), out_specs=(P("i"), P("i")))
        x, steps = jax.jit(jax.shard_map(alone, **specs))(d.at[:8].set(2.0), b)
        assert jnp.allclose(jax.device_get(x), b / d.at[:8].set(2.0))
        assert steps.tolist() == [1, 8, 8, 8]
    """)


def collectives_in_loops(text):
    """Count the collectives in the bodies and conditions of the while loops of a compiled program."""
    computations, lines = {}, []
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header:
            lines = computations.setdefault(header[1], [])
        elif line.startswith(" "):
            lines.append(line)
    called = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
    inside, pending = set(), []
    loops = 0
    for lines in computations.values():
        for line in lines:
            if re.search(r"\bwhile\(", line):
                loops += 1
                pending += re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    while pending:
        name = pending.pop()
        if name in inside:
            continue
        inside.add(name)
        for line in computations[name]:
            pending += called.findall(line)
            for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
                pending += [item.strip().lstrip("%") for item in group.split(",")]
    assert loops > 0
    return sum(len(COLLECTIVE.findall(line)) for name in inside for line in computations[name])


def test_experts_equal_vmap_and_do_not_communicate():
    out = run_on_four_devices("""
        K, m, n = 8, 12, 3
        keys = jr.split(jr.key(0), 3)
        A = jr.normal(keys[0], (K, m, n))
        y = jnp.tanh(jax.vmap(jnp.matmul)(A, jr.normal(keys[1], (K, n)))) + 0.1 * jr.normal(keys[2], (K, m))
        # Experts of unequal difficulty need unequal numbers of steps.
        A, shift = A * jnp.linspace(0.3, 1.5, K)[:, None, None], jnp.array(0.3)

        def lm(A, y, shift):
            # `shift` is captured, the others are arguments.
            fn = lambda w, args: jnp.tanh(args[0] @ w) + 0.1 * shift * w[0] - args[1]
            return dist.levenberg_marquardt(fn, jnp.zeros(n), (A, y), ridge=1e-3)

        def linear(A, y, shift):
            return dist.least_squares(A, y, ridge=shift)

        def value_and_grad(solve_all):
            def fn(A, y, shift):
                out = solve_all(A, y, shift)
                return jnp.sum(jnp.sin(out.value) ** 3), out
            return jax.value_and_grad(fn, (0, 1, 2), has_aux=True)

        # More experts than devices, as many, and one.
        for solver, cases in ((lm, ((4, True), (1, True), (8, False), (8, True))), (linear, ((8, True), (8, False)))):
            each = jax.jit(jax.vmap(value_and_grad(solver), (0, 0, None)))(A, y, shift)
            batched = jax.vmap(solver, (0, 0, None))
            for K, check_vma in cases:
                (_, theirs), theirs_grad = jax.tree.map(lambda x: x[:K], each)
                mesh = dist.mesh("expert", jax.devices()[: min(K, 4)])
                specs = dict(in_specs=(P("expert"), P("expert"), P()), out_specs=P("expert"), check_vma=check_vma)
                args = (*dist.shard((A[:K], y[:K]), mesh), shift)
                sharded = jax.jit(value_and_grad(jax.shard_map(batched, mesh=mesh, **specs))).lower(*args).compile()
                (_, ours), ours_grad = sharded(*args)
                assert jnp.all(ours.result == RESULTS.successful)
                assert len(ours.value.sharding.device_set) == min(K, 4)
                assert distance(ours.value, theirs.value) < 1e-10
                assert distance(ours_grad, (*theirs_grad[:2], jnp.sum(theirs_grad[2]))) < 1e-9
                steps, same = (jax.device_get(out.stats["num_steps"]) for out in (ours, theirs))
                assert np.all(np.abs(steps - same) <= 1)
            if solver is lm:
                print(sharded.as_text(), "=====")
                print(jax.jit(value_and_grad(batched)).lower(*args).compile().as_text())
    """)
    sharded, global_view = out.split("=====")
    assert collectives_in_loops(sharded) == 0
    # The gradient in what all experts share is summed, after the loop.
    assert COLLECTIVE.search(sharded)
    # In the global view all wait for the slowest, every step.
    assert collectives_in_loops(global_view) > 0
