"""Orbax checkpoints: restored after every permitted edit of the recipe, refused otherwise."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import adamw_jax as aj
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_equal,
    at,
    one_step,
    rows,
    sample_gradients,
    sample_params,
)

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
SCHEDULE = optax.linear_schedule(0.1, 0.05, 10)
ADAMW = aj.adamw(0.1)


def gradients(step: Any) -> Any:
    keys = jax.random.split(jax.random.key(step), 2)
    return {
        "dense": {
            "kernel": jax.random.normal(keys[0], (3, 2)),
            "bias": jax.random.normal(keys[1], (2,)),
        }
    }


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx: Any, params: Any, state: Any, steps: jax.Array) -> tuple[Any, Any]:
    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), jax.vmap(gradients)(steps))[0]


def train(tx: Any, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    return scanned(tx, params, state, jnp.asarray(steps))


def saved(folder: pathlib.Path, state: Any) -> pathlib.Path:
    path = folder / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
    return path


def restored(path: pathlib.Path, target: Any = None) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def same(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


@pytest.fixture(scope="module")
def run() -> tuple[Any, Any]:
    """Parameters and state of adamw after five steps."""
    return train(ADAMW, PARAMS, ADAMW.init(PARAMS), range(5))


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_every_optimizer(tmp_path: pathlib.Path, entry: Entry) -> None:
    """A state restored after three steps is the state, and the fourth step the same."""
    tx, params, steps = entry.make(), sample_params(), sample_gradients(4)
    step = jax.jit(one_step(tx))
    state = tx.init(params)
    for i in range(3):
        params, state = step(params, state, at(steps, i))
    back = restored(saved(tmp_path, state), tx.init(params))
    assert_equal(back, state)
    assert_equal(step(params, back, at(steps, 3)), step(params, state, at(steps, 3)))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "edited",
    [
        aj.adamw(0.1),
        aj.adamw(SCHEDULE),
        aj.compose(optax.clip_by_global_norm(1e9), aj.adamw(0.1)),
        aj.compose(optax.clip(1e9), aj.adamw(SCHEDULE, weight_decay=lambda count: 1e-4)),
    ],
    ids=["same", "schedule", "clip", "clip and schedules"],
)
def test_restores_as_it_is(tmp_path: pathlib.Path, run: Any, edited: Any) -> None:
    """A number made a schedule, or a clip more, has the same state."""
    params, state = run
    path = saved(tmp_path, state)
    back = restored(path, edited.init(PARAMS))
    assert jax.tree.structure(back) == jax.tree.structure(edited.init(PARAMS))
    same(back, state)
    assert int(back.count) == 5
    _, after = train(edited, params, back, range(5, 6))
    scheduled = callable(edited.hyperparams["learning_rate"].value)
    rate = float(SCHEDULE(5)) if scheduled else 0.1
    assert float(aj.hyperparams(after)["learning_rate"]) == pytest.approx(rate)


def test_a_pinned_value_stays_under_a_clip_of_ours(run: Any) -> None:
    """Its hyperparameters have names of their own."""
    params, state = run
    state = aj.set_hyperparams(state, eps=1e-3)
    moved, report = aj.migrate_state(state, aj.compose(aj.clip_gradient(1.0), ADAMW), params)
    assert float(aj.hyperparams(moved)["eps"]) == pytest.approx(1e-3)
    assert bool(moved.hyperparams.is_pinned("eps"))
    assert not report.dropped
    with pytest.raises(ValueError, match=r"^eps must be a number >= 0"):
        aj.clip_gradient(1.0, eps=-1.0)


WRAPPED = {
    "chain": optax.chain(optax.clip(1e9), aj.adamw(0.1)),
    "masked": optax.masked(aj.adamw(0.1), {"dense": True}),
    "multi steps": optax.MultiSteps(aj.adamw(0.1), 1).gradient_transformation(),
    "apply if finite": optax.apply_if_finite(aj.adamw(0.1), 3),
    "lookahead": aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=100)),
    "both": optax.chain(aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=100))),
}


@pytest.mark.sample(4)
@pytest.mark.quick
@pytest.mark.parametrize("plain", [False, True], ids=["typed", "plain dicts"])
@pytest.mark.parametrize("name", WRAPPED)
def test_migrates_over_wrapping_and_tails(
    tmp_path: pathlib.Path, run: Any, name: str, plain: bool
) -> None:
    """Also from the dicts and lists of a restore without a target; the run goes on as before."""
    params, state = run
    old = restored(saved(tmp_path, state)) if plain else state
    with jax.numpy_dtype_promotion("standard"):
        new, report = aj.migrate_state(old, WRAPPED[name], params)
        assert "stages/estimate_moments/first/average/dense/kernel" in report.kept
        assert "count" in report.kept
        assert not report.dropped
        got, _ = train(WRAPPED[name], params, new, range(5, 10))
    expected, _ = train(ADAMW, params, state, range(5, 10))
    same(got, expected)


def test_migrates_over_unwrapping(run: Any) -> None:
    """The way back: what has no place is reported."""
    params, _ = run
    tx = WRAPPED["both"]
    wrapped_params, wrapped = train(tx, PARAMS, tx.init(PARAMS), range(5))
    state, report = aj.migrate_state(wrapped, aj.adamw(0.1), params)
    assert any(name.startswith("stages/lookahead/slow") for name in report.dropped)
    got, _ = train(aj.adamw(0.1), wrapped_params, state, range(5, 10))
    same(got, train(tx, wrapped_params, wrapped, range(5, 10))[0])


REFUSED = {
    "another optimizer": (aj.sgdw(0.1), PARAMS, r"stages/estimate_moments/second"),
    "AMSGrad's maximum": (aj.adamw(0.1, amsgrad=True), PARAMS, r"stages/amsgrad_max/maximum"),
    "another shape": (
        aj.adamw(0.1),
        {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}},
        r"first/average/dense/kernel has shape \(3, 2\) in the checkpoint and \(4, 2\) now",
    ),
    "another leaf": (
        aj.adamw(0.1),
        {"dense": {**PARAMS["dense"], "scale": jnp.ones(2)}},
        r"first/average/dense/scale is in the new recipe but not in the checkpoint",
    ),
    "two recipes": (
        optax.chain(aj.adamw(0.1), aj.adamw(0.1)),
        PARAMS,
        r"recipes of saved are at \['the root'\], those of the state of tx at \['0', '1'\]",
    ),
    "optax": (optax.adamw(0.1), PARAMS, r"the state of tx holds no recipe.*to_optax"),
}


@pytest.mark.parametrize("params", [PARAMS, jnp.ones(3)], ids=["tree", "bare"])
@pytest.mark.parametrize(
    ("tx", "without", "lost"),
    [
        (aj.adamw(0.1, amsgrad=True), aj.adamw(0.1), "stages/amsgrad_max/maximum"),
        (aj.diffgrad(0.1), aj.adam(0.1), "stages/friction/previous"),
    ],
    ids=["maximum", "friction"],
)
def test_an_accumulator_is_not_dropped(tx: Any, without: Any, lost: str, params: Any) -> None:
    with pytest.raises(ValueError, match=f"{lost}.* is in the checkpoint but not in the new"):
        aj.migrate_state(tx.init(params), without, params)


def test_a_maximum_is_not_taken_for_the_other() -> None:
    saved = aj.amsgrad(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"corrected_maximum/.* is in the new recipe but not in"):
        aj.migrate_state(saved, aj.amsgrad(0.1, maximum="corrected"), PARAMS)


def test_a_total_is_not_taken_for_a_weight_sum() -> None:
    """From a weighted average to a debiased one, whose weight sum is at most 1 and begins anew."""
    weighted, debiased = (
        aj.compose(aj.sgdw(0.1), aj.average_iterates(kind=kind, **options))
        for kind, options in (("weighted", {}), ("ema", {"debias": True}))
    )
    params, saved = train(weighted, PARAMS, weighted.init(PARAMS), range(4))
    assert float(saved.stages["average_iterates"].total) == 10
    state, report = aj.migrate_state(saved, debiased, params)
    assert "stages/average_iterates/weight_sum" in report.started
    _, state = train(debiased, params, state, range(4, 6))
    assert 0 < float(state.stages["average_iterates"].weight_sum) <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_by_name(run: Any, name: str) -> None:
    tx, params, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        aj.migrate_state(run[1], tx, params)


TWINS = {
    "adam": (optax.adam(0.1), aj.adam(0.1)),
    "adamw": (optax.adamw(0.1), aj.adamw(0.1)),
    "adamw, schedule": (optax.adamw(SCHEDULE), aj.adamw(SCHEDULE)),
    "adamax": (optax.adamax(0.1), aj.adamax(0.1)),
    "amsgrad": (optax.amsgrad(0.1), aj.amsgrad(0.1, maximum="corrected")),
    # With b2 = 0.9, for optax's rectifier is off in float32 by percents at b2 = 0.999.
    "radam": (optax.radam(0.1, b2=0.9), aj.radam(0.1, b2=0.9, below="momentum")),
    "adabelief": (optax.adabelief(0.1), aj.adabelief(0.1)),
    "sgd": (optax.sgd(0.1, momentum=0.9), aj.sgdw(0.1)),
}


@pytest.mark.sample(3)
@pytest.mark.quick
@pytest.mark.parametrize("name", TWINS)
def test_from_optax_and_back(tmp_path: pathlib.Path, name: str) -> None:
    """A run of optax goes on with ours, and a run of ours with optax."""
    theirs, ours = TWINS[name]
    with jax.numpy_dtype_promotion("standard"):
        params, state = train(theirs, PARAMS, theirs.init(PARAMS), range(6))
        expected, _ = train(theirs, params, state, range(6, 12))
        state = restored(saved(tmp_path, state), theirs.init(PARAMS))
        imported = aj.from_optax(state, ours, params)
        got, _ = train(ours, params, imported, range(6, 12))
        jax.tree.map(
            lambda a, b, p: np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b - p).max()),
            got,
            expected,
            params,
        )
        exported = aj.to_optax(imported, theirs, params)
        assert jax.tree.structure(exported) == jax.tree.structure(state)
        same(exported, state)


def test_from_optax_refuses_what_does_not_fit() -> None:
    adam = optax.adam(0.1).init(PARAMS)
    with pytest.raises(ValueError, match="is of ScaleByLionState, which no recipe"):
        aj.from_optax(optax.lion(0.1).init(PARAMS), aj.adam(0.1), PARAMS)
    with pytest.raises(ValueError, match=r"first moment .* HeavyBallState, but ScaleByAdamState"):
        aj.from_optax(adam, aj.sgdw(0.1), PARAMS)
    with pytest.raises(ValueError, match="AMSGrad's maximum, which the saved state does not have"):
        aj.from_optax(adam, aj.amsgrad(0.1), PARAMS)
    with pytest.raises(TypeError, match="recipe of adamw_jax"):
        aj.from_optax(adam, optax.adam(0.1), PARAMS)
    other = {"dense": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(5, 2\)"):
        aj.from_optax(adam, aj.adam(0.1), other)


CORRESPONDS = {
    "adam": {"adam", "adamax", "adamw", "gadam", "lamb", "radam"},
    "adamax": {"adam", "adamax", "adamw", "gadam", "lamb", "radam"},
    "adabelief": {"acprop", "adabelief"},
    "amsgrad": set(),
    "sgd": {"sgdw"},
}
"""Whose accumulators are those of which: nothing else of the catalogue is taken from optax."""


@pytest.mark.sample(2)
@pytest.mark.quick
@pytest.mark.parametrize("theirs", CORRESPONDS)
def test_only_what_means_the_same_goes_from_optax_and_back(theirs: str) -> None:
    """Adam, AdaMax and RAdam look alike in optax; its AMSGrad is that of the corrected moment."""
    options = {"momentum": 0.9} if theirs == "sgd" else {}
    tx = getattr(optax, theirs)(0.1, **options)
    with jax.numpy_dtype_promotion("standard"):
        params, state = train(tx, PARAMS, tx.init(PARAMS), range(3))
    there, back = set(), set()
    for name in aj.list_optimizers():
        row = aj.info(name)
        ours = row.factory(0.1, **row.example)
        with contextlib.suppress(ValueError):
            aj.from_optax(state, ours, params)
            there.add(name)
        _, run = ours.update(params, ours.init(params), params, value=1.0)
        with contextlib.suppress(ValueError):
            aj.to_optax(run, tx, params)
            back.add(name)
    assert there == CORRESPONDS[theirs]
    assert back == there - {"gadam"}  # averaged weights would be lost


def test_a_maximum_of_the_raw_moment_is_not_optax_s() -> None:
    theirs, params = optax.amsgrad(0.1), PARAMS
    raw, corrected = aj.amsgrad(0.1), aj.amsgrad(0.1, maximum="corrected")
    with jax.numpy_dtype_promotion("standard"):
        _, saved_state = train(theirs, params, theirs.init(params), range(3))
    with pytest.raises(ValueError, match=r'raw second moment.* maximum="corrected"'):
        aj.from_optax(saved_state, raw, params)
    _, state = train(raw, params, raw.init(params), range(3))
    with pytest.raises(ValueError, match=r'raw second moment.* maximum="corrected"'):
        aj.to_optax(state, theirs, params)
    _, state = train(corrected, params, corrected.init(params), range(3))
    aj.to_optax(state, theirs, params)


@pytest.mark.parametrize("make", [lambda w: w, lambda w: {"count": w}], ids=["top", "nested"])
def test_a_parameter_may_be_called_count(make: Any) -> None:
    params = {"count": make(jnp.ones(2)), "w": jnp.ones(3)}
    ours, theirs = aj.adamw(0.1), optax.adamw(optax.constant_schedule(0.1))
    _, state = ours.update(params, ours.init(params), params)
    moments = state.stages["estimate_moments"]
    exported = aj.to_optax(state, theirs, params)
    same(exported[0].mu, moments.first.moment)
    same(exported[0].nu, moments.second.moment)
    assert [int(node.count) for node in (exported[0], exported[2])] == [1, 1]
    same(aj.from_optax(exported, ours, params), state)


def test_code_wins_unless_pinned_also_after_a_restore(tmp_path: pathlib.Path, run: Any) -> None:
    params, state = run
    path = saved(tmp_path, aj.set_hyperparams(state, weight_decay=0.3))
    tx = aj.adamw(0.02, weight_decay=0.7)
    back = restored(path, tx.init(PARAMS))
    compiled = jax.jit(tx.update, donate_argnums=1)
    _, after = compiled(gradients(5), back, params)
    assert float(aj.hyperparams(after)["learning_rate"]) == pytest.approx(0.02)
    assert float(aj.hyperparams(after)["weight_decay"]) == pytest.approx(0.3)
    after = aj.clear_hyperparams(after, "weight_decay")
    _, after = compiled(gradients(6), after, params)
    assert float(aj.hyperparams(after)["weight_decay"]) == pytest.approx(0.7)
    assert compiled._cache_size() == 1


def test_truncated_and_foreign_checkpoints_are_refused(tmp_path: pathlib.Path, run: Any) -> None:
    path = saved(tmp_path, run[1])
    with pytest.raises((ValueError, FileNotFoundError)):
        restored(tmp_path / "nothing", aj.adamw(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"[Ss]tructure|[Mm]ismatch|do not match|tree"):
        restored(path, aj.sgdw(0.1).init(PARAMS))
    truncate(path / "_METADATA")
    with pytest.raises(json.JSONDecodeError):  # what it says depends on where the cut falls
        restored(path, aj.adamw(0.1).init(PARAMS))


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_truncated_arrays_are_refused(tmp_path: pathlib.Path, run: Any) -> None:
    """In a process of its own, for Orbax leaves its failed reads to the garbage collector."""
    path = saved(tmp_path, run[1])
    script = textwrap.dedent(
        f"""
        import os
        import jax.numpy as jnp, orbax.checkpoint as ocp
        import adamw_jax as aj
        params = {{"dense": {{"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}}}
        try:
            ocp.StandardCheckpointer().restore({str(path)!r}, aj.adamw(0.1).init(params))
        except Exception as error:
            print(repr(error), flush=True)
            os._exit(1)
        print("restored")
        """
    )
    command = [sys.executable, "-c", script]
    whole = subprocess.run(command, capture_output=True, text=True, check=False)
    assert whole.stdout == "restored\n", whole.stderr
    arrays = [file for file in path.rglob("*") if file.parent.name == "d"]
    assert arrays
    for file in arrays:
        truncate(file)
    cut = subprocess.run(command, capture_output=True, text=True, check=False)
    assert cut.returncode == 1
    assert re.search(r"OUT_OF_RANGE|error while reading array index", cut.stdout), cut.stdout


def test_a_kill_in_mid_save_leaves_the_previous_checkpoint(tmp_path: pathlib.Path) -> None:
    """SIGKILL while the second step is written: the first is intact and the only one listed."""
    script = textwrap.dedent(
        f"""
        import os, signal, threading, time
        import jax.numpy as jnp, orbax.checkpoint as ocp
        import adamw_jax as aj
        manager = ocp.CheckpointManager({str(tmp_path)!r})
        params = {{f"w{{i}}": jnp.full((400, 400), 2.0) for i in range(60)}}
        state = aj.adamw(0.1).init(params)
        manager.save(0, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        manager.save(1, args=ocp.args.StandardSave(state))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    params = {f"w{i}": jnp.full((400, 400), 2.0) for i in range(60)}
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.latest_step() == 0
        target = aj.adamw(0.1).init(params)
        same(manager.restore(0, args=ocp.args.StandardRestore(target)), target)


@pytest.mark.devices
def test_sharded_state_follows_the_parameters_without_collectives() -> None:
    """On eight simulated devices: state sharded as the params, an element-wise step stays local."""
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = jax.device_put({"w": jnp.ones((16, 4))}, sharding)
    tx = aj.compose(aj.adamw(0.1, amsgrad=True), aj.lookahead())
    state = tx.init(params)
    for leaf in jax.tree.leaves(state.stages):
        assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    traces = []

    @jax.jit
    def step(params, state, gradients):
        traces.append(1)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    text = step.lower(params, state, params).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    new_params, new_state = step(params, state, params)
    assert new_params["w"].sharding.is_equivalent_to(sharding, 2)
    pinned = aj.set_hyperparams(new_state, learning_rate=0.01)
    step(new_params, new_state, params)
    before = len(traces)
    step(new_params, pinned, params)
    assert len(traces) == before


def test_from_optax_needs_the_saved_rate_where_ours_is_a_schedule() -> None:
    """The clocks follow from the rate of the saved run, which optax's state does not tell."""
    params = {"w": jnp.ones(3)}
    saved = optax.adamw(1e-3, b1=0.8)
    state = saved.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            _, state = saved.update(params, state, params)
    tx = aj.adamw(aj.one_cycle(1e-3, 100))
    with pytest.raises(ValueError, match="b1 of tx is a schedule"):
        aj.from_optax(state, tx, params)
    carried = aj.from_optax(state, tx, params, b1=0.8)
    weight_sum = carried.stages["estimate_moments"].first.clock.weight_sum
    np.testing.assert_allclose(weight_sum, 1 - 0.8**3, rtol=1e-6)


def test_migrates_parameters_called_stages() -> None:
    """A model with a submodule ``stages`` is not taken for a second recipe."""
    params = {"stages": {"0": {"kernel": jnp.ones((2, 2))}}, "count": jnp.ones(2)}
    plain, tailed = aj.adamw(1e-3), aj.compose(aj.adamw(1e-3), aj.lookahead())
    _, state = plain.update(jax.tree.map(jnp.ones_like, params), plain.init(params), params)
    migrated, report = aj.migrate_state(state, tailed, params)
    assert int(migrated.count) == 1
    assert "stages/lookahead/since_sync" in report.started
    back, _ = aj.migrate_state(migrated, plain, params)
    chex.assert_trees_all_equal(back, state)


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.9999])
def test_the_age_of_a_young_average_is_exact(b2: float) -> None:
    """What RAdam's length is made of, read from a count alone, without cancellation."""
    theirs, ours = optax.radam(0.1, b2=b2), aj.radam(0.1, b2=b2)
    state = theirs.init(PARAMS)
    rate = float(np.float32(b2))
    for t in (1, 2, 10):
        counted = optax.tree.set(state, count=jnp.asarray(t, jnp.int32))
        clock = aj.from_optax(counted, ours, PARAMS).stages["estimate_moments"].second.clock
        expected = (1 - rate) * sum(k * rate**k for k in range(t))
        np.testing.assert_allclose(clock.weighted_age, expected, rtol=1e-6)
