"""Devices skip a step together: sharded arrays, shards by hand, and gradients of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import accumulate, read_skips, skip_bad_steps
from adamw_jax.update import dynamic_loss_scale
from tests.catalogue import assert_close, assert_equal

pytestmark = [pytest.mark.devices, pytest.mark.quick]

SPECS = {"bias": P("fsdp"), "kernel": P("fsdp"), "scale": P()}
SHAPES = {"bias": (8,), "kernel": (16, 12), "scale": ()}
INSIDE = {
    "adamw": aj.adamw(0.1),
    "clipped": aj.compose(aj.clip_gradient(0.1), aj.adamw(0.1), aj.lookahead(sync_period=2)),
    "8 bits": aj.adamw(0.1, storage=aj.storage.choose("8bit", min_size=16)),
}
AROUND = {
    "skip_bad_steps": lambda tx: skip_bad_steps(tx, norm_spike=6.0),
    "accumulate": lambda tx: accumulate(skip_bad_steps(tx), 2),
    "dynamic_loss_scale": lambda tx: dynamic_loss_scale(tx, initial=1.0),
}


def arrays(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES.items()}


def spoilt(tree: Any) -> Any:
    """With one NaN, which only the last device has."""
    return tree | {"kernel": tree["kernel"].at[-1, -1].set(jnp.nan)}


def mesh(kind: AxisType = AxisType.Auto) -> Any:
    return jax.make_mesh((8,), ("fsdp",), axis_types=(kind,))


def places(on: Any) -> Any:
    return {k: NamedSharding(on, spec) for k, spec in SPECS.items()}


def ends(update: Any, tx: Any, bad: tuple[int, ...] = (2,)) -> Any:
    params = arrays(0)
    state = tx.init(params)
    for seed in range(1, 6):
        gradient = spoilt(arrays(seed)) if seed in bad else arrays(seed)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get((params, state))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.sample(2)
@pytest.mark.parametrize("inside", INSIDE)
def test_sharded_arrays_need_no_option(inside: str, around: str, kind: AxisType) -> None:
    tx, on = AROUND[around](INSIDE[inside]), mesh(kind)
    if kind is AxisType.Explicit and inside == "8 bits":
        tx = AROUND[around](aj.adamw(0.1))  # codes in explicit meshes have tests of their own
    wanted = aj.state_shardings(tx, arrays(0), places(on))
    step = jax.jit(tx.update, out_shardings=(places(on), wanted))

    def update(gradient: Any, state: Any, params: Any) -> Any:
        given = jax.device_put((gradient, params), (places(on), places(on)))
        return step(given[0], jax.device_put(state, wanted), given[1])

    with jax.set_mesh(on):
        got = ends(update, tx)
    assert_close(got, ends(jax.jit(tx.update), tx), rtol=1e-5, atol=1e-6)


@pytest.mark.sample(3)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("around", AROUND)
def test_shards_by_hand(around: str, check_vma: bool) -> None:
    """One shard with a NaN is enough for all devices."""
    tx = AROUND[around](aj.compose(INSIDE["clipped"], norm_axes="fsdp"))
    state = jax.tree.map(lambda s: s.spec, aj.state_shardings(tx, arrays(0), places(mesh())))
    specs: Any = {"in_specs": (SPECS, state, SPECS), "out_specs": (SPECS, state)}
    step = jax.jit(jax.shard_map(tx.update, mesh=mesh(), check_vma=check_vma, **specs))
    if not check_vma:  # all leaves count as shards, also the one that is not
        got = ends(step, tx)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got[0]))
        return
    plain = AROUND[around](INSIDE["clipped"])
    assert_close(ends(step, tx), ends(jax.jit(plain.update), plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_loss_of_one_device(check_vma: bool) -> None:
    """Data parallel: gradients are averaged, the loss is not, and only one device's is lost."""
    tx = skip_bad_steps(aj.adamw(0.1), loss_spike=6.0, axis_name=None if check_vma else "fsdp")
    params = arrays(0)

    def step(state: Any, losses: Any) -> Any:
        return tx.update(params, state, params, value=losses[0])

    split = jax.jit(
        jax.shard_map(
            step, mesh=mesh(), in_specs=(P(), P("fsdp")), out_specs=P(), check_vma=check_vma
        )
    )
    state = tx.init(params)
    for losses in (jnp.arange(8.0), jnp.ones(8).at[5].set(jnp.nan)):
        updates, state = split(state, losses)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
    assert int(read_skips(state)["by_loss"]) == 1
    assert state.losses is not None
    assert float(state.losses.values[0]) == 3.5


def test_models_of_their_own_skip_by_themselves() -> None:
    tx = skip_bad_steps(aj.compose(aj.adamw(0.1), norm_axes=()))
    params = jnp.ones((8, 4))
    gradient = params.at[3, 0].set(jnp.nan)

    def step(g: Any, p: Any) -> Any:
        updates, state = tx.update(g, tx.init(p), p)
        return updates, state.skipped[None]

    split = jax.shard_map(step, mesh=mesh(), in_specs=P("fsdp"), out_specs=P("fsdp"))
    updates, skipped = jax.jit(split)(gradient, params)
    assert_equal(np.any(np.asarray(updates) != 0, axis=1), np.arange(8) != 3)
    assert_equal(skipped.sum(axis=1), (jnp.arange(8) == 3).astype(jnp.int32))


@pytest.mark.parametrize("around", AROUND)
def test_a_sharded_state_of_whole_parameters_in_an_explicit_mesh(around: str) -> None:
    """ZeRO-1: every array of the state keeps its place, also the sum of gradients."""
    tx, on = AROUND[around](INSIDE["clipped"]), mesh(AxisType.Explicit)
    with jax.set_mesh(on):
        params = jax.device_put({"w": jnp.ones((16, 4))}, NamedSharding(on, P()))
        parts = aj.state_shardings(tx, params, NamedSharding(on, P("fsdp")))
        state = jax.jit(tx.init, out_shardings=parts)(params)
        _, after = jax.eval_shape(tx.update, params, state, params)
    for x, part in zip(*map(jax.tree.leaves, (after, parts)), strict=True):
        assert [*x.sharding.spec] == [*part.spec, *[None] * (x.ndim - len(part.spec))]


def test_what_must_be_said() -> None:
    tx, params = skip_bad_steps(aj.adamw(0.1)), arrays(0)
    state = jax.tree.map(lambda s: s.spec, aj.state_shardings(tx, params, places(mesh())))
    specs: Any = {"in_specs": (SPECS, state, SPECS), "out_specs": (SPECS, state)}
    step = jax.shard_map(tx.update, mesh=mesh(), **specs)
    with pytest.raises(ValueError, match=r"skip_bad_steps takes a norm, .*norm_axes='fsdp'"):
        jax.eval_shape(step, params, tx.init(params), params)
    named = skip_bad_steps(aj.adamw(0.1), axis_name="data")
    with pytest.raises(ValueError, match="axis_name names 'data', which is not an axis"):
        named.update(params, named.init(params), params)
