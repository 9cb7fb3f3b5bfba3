"""Inside ``shard_map`` a shard steps as its part of the whole does, or an error says why not."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.storage import choose, eight_bit, four_bit
from tests.catalogue import PLAIN, assert_close, with_needs

pytestmark = pytest.mark.devices

SPECS = {"bias": P("fsdp"), "kernel": P("fsdp"), "scale": P()}
SHAPES = {"bias": (8,), "kernel": (16, 12), "scale": ()}
DECLARE = r"compose\(tx, norm_axes='fsdp'\).*compose\(tx, norm_axes=\(\)\)"
WHOLE = "needs whole arrays, but one of shape .* call the update outside"


def arrays(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES.items()}


def mesh() -> Any:
    return jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))


def sharded(tx: Any, params: Any) -> Any:
    """Its update by hand, each device on its shards of parameters and state."""
    places = {k: NamedSharding(mesh(), spec) for k, spec in SPECS.items()}
    state = jax.tree.map(lambda s: s.spec, aj.state_shardings(tx, params, places))
    specs: Any = {"in_specs": (SPECS, state, SPECS), "out_specs": (SPECS, state)}
    step = jax.shard_map(tx.update, mesh=mesh(), **specs)
    return jax.jit(step)


def assert_as_one_device(update: Any, tx: Any) -> None:
    ends = []
    for each in (update, jax.jit(tx.update)):
        params = arrays(0)
        state = tx.init(params)
        for seed in (1, 2, 3):
            updates, state = each(arrays(seed), state, params)
            params = optax.apply_updates(params, updates)
        ends.append((params, state))
    assert_close(*ends, rtol=1e-5, atol=1e-6)


def summed(tx: Any) -> Any:
    return aj.compose(tx, norm_axes="fsdp")


def takes_a_norm(tx: Any) -> bool:
    """Whether some stage refuses shards of which nobody said anything."""
    with contextlib.suppress(ValueError):
        jax.eval_shape(sharded(tx, arrays(0)), arrays(1), tx.init(arrays(0)), arrays(0))
        return False
    with pytest.raises(ValueError, match=f"takes a norm.*{DECLARE}"):
        sharded(tx, arrays(0))(arrays(1), tx.init(arrays(0)), arrays(0))
    return True


NORMED = {
    "clip_gradient": aj.compose(aj.clip_gradient(0.1), aj.sgdw(0.1)),
    "percentile_clipping": aj.compose(aj.percentile_clipping(50, 4), aj.sgdw(0.1)),
    "percentile_clipping, whole tree": aj.compose(
        aj.percentile_clipping(50, 4, whole_tree=True), aj.sgdw(0.1)
    ),
    "cautious": aj.adamw(0.1, cautious=True),
    "probe": aj.probe(aj.clip_gradient(1.0), aj.adamw(0.1)),
    "probe, per leaf": aj.probe(aj.adamw(0.1), per_leaf=True),
    "adafactor, relative step": aj.adafactor(relative_step=True, factored=False),
    "in optax.chain": aj.compose(optax.chain(aj.clip_gradient(0.1), optax.sgd(0.1))),
    "under Lookahead": aj.compose(aj.lamb(0.1), aj.lookahead(sync_period=2)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("entry", PLAIN, ids=lambda entry: entry.label)
def test_the_catalogue(entry: Any) -> None:
    """Every optimizer steps as on one device, those with norms once told; factors are refused."""
    tx = entry.make()
    told = with_needs(entry.info, summed(tx))
    if entry.label == "adafactor-factored":
        for each in (tx, told):
            with pytest.raises(ValueError, match=WHOLE + ".*give factored=False"):
                sharded(each, arrays(0))(arrays(1), tx.init(arrays(0)), arrays(0))
        return
    assert takes_a_norm(tx) == (entry.scope != "element")
    assert_as_one_device(sharded(told, arrays(0)), tx)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", NORMED)
def test_stages_and_wrappers(name: str) -> None:
    tx = NORMED[name]
    assert takes_a_norm(tx)
    assert_as_one_device(sharded(summed(tx), arrays(0)), tx)


@pytest.mark.parametrize("name", ["lars", "normalized_sgd", "clip"])
def test_squares_out_of_range(name: str) -> None:
    """Those of one shard are enough for all devices to take the same branch."""
    tx = aj.compose(aj.clip_gradient(1e-3)) if name == "clip" else aj.create(name, 0.1)
    params, gradient = (
        arrays(seed) | {"bias": arrays(seed)["bias"] * jnp.ones(8).at[3].set(1e20)}
        for seed in (0, 1)
    )
    gradient = jax.tree.map(lambda g: g * jnp.float32(1e20), gradient)
    state = tx.init(params)
    got = sharded(summed(tx), params)(gradient, state, params)[0]
    assert_close(got, jax.jit(tx.update)(gradient, state, params)[0], rtol=1e-5, atol=0)


def test_what_stands_alone_is_refused_with_both_remedies() -> None:
    """Also by a stage that nobody composes, which sees no more than optax's do."""
    params, tx = arrays(0), optax.chain(aj.clip_gradient(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"clip_gradient takes a norm.*{DECLARE}"):
        sharded(tx, params)(params, tx.init(params), params)


def test_models_of_their_own_and_gradients_of_their_own() -> None:
    """``norm_axes=()`` takes each device's norm; so does a local gradient of common parameters."""
    tx = aj.compose(aj.normalized_sgd(1.0, momentum=None), norm_axes=())
    params = arrays(0)
    step = jax.shard_map(
        lambda g, p: tx.update(g, tx.init(p), p)[0],
        mesh=mesh(),
        in_specs=(P("fsdp"), P("fsdp")),
        out_specs=P("fsdp"),
    )
    kernel: Any = step(params["kernel"], params["kernel"])
    np.testing.assert_allclose(
        jnp.sqrt(jnp.sum(kernel.reshape(8, -1) ** 2, axis=1)), np.ones(8), rtol=1e-5
    )
    clip = aj.clip_gradient(1.0)
    local = jax.shard_map(
        lambda g, p: clip.update(g, clip.init(p), p)[0],
        mesh=mesh(),
        in_specs=(P("fsdp"), P()),
        out_specs=P("fsdp"),
    )
    got = local(params["kernel"], params["kernel"][:2])
    assert float(jnp.linalg.norm(got)) > 1.1  # each of the eight is at most 1 long


@pytest.mark.parametrize("make", [aj.clip_gradient, optax.clip_by_global_norm])
def test_a_norm_that_optax_takes_is_that_of_a_shard(make: Any) -> None:
    """Without a word, as the page on sharding says: nobody tells it the axes."""
    params, tx = {"kernel": arrays(0)["kernel"]}, aj.compose(make(1.0), norm_axes="fsdp")
    rows = P("fsdp")
    step = jax.shard_map(
        lambda g: tx.update(g, tx.init(g), g)[0], mesh=mesh(), in_specs=rows, out_specs=rows
    )
    length = float(optax.tree.norm(step(params)))
    assert length == pytest.approx(1.0 if make is aj.clip_gradient else np.sqrt(8), rel=1e-5)


def test_without_types_all_leaves_are_shards() -> None:
    params = {"kernel": arrays(0)["kernel"]}
    tx = aj.compose(aj.clip_gradient(0.1), norm_axes=["fsdp"])
    step = jax.shard_map(
        lambda g: tx.update(g, tx.init(g))[0],
        mesh=mesh(),
        in_specs=P("fsdp"),
        out_specs=P("fsdp"),
        check_vma=False,
    )
    assert_close(step(params), aj.clip_gradient(0.1).update(params, clip_state(params))[0])


def clip_state(params: Any) -> Any:
    return aj.clip_gradient(0.1).init(params)


def test_stacked_layers_are_refused() -> None:
    params = {"kernel": arrays(0)["kernel"]}
    tx = aj.koala_v(0.1, stacked="kernel")
    step = jax.shard_map(
        lambda g: tx.update(g, tx.init(g), g, value=1.0)[0],
        mesh=mesh(),
        in_specs=P("fsdp"),
        out_specs=P("fsdp"),
    )
    with pytest.raises(ValueError, match=f"stacked layers {WHOLE}"):
        step(params)


def test_axes_that_are_not_there() -> None:
    params = arrays(0)
    tx = summed(aj.lamb(0.1))
    with pytest.raises(ValueError, match="norm_axes names 'fsdp', which is not an axis"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="norm_axes must be names of mesh axes or None, got"):
        aj.compose(aj.lamb(0.1), norm_axes=(0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different norm_axes"):
        aj.compose(tx, norm_axes="model")
    assert aj.compose(tx).norm_axes == aj.compose(tx, norm_axes="fsdp").norm_axes == ("fsdp",)


STORED = {
    "8bit": ("8bit", True),
    "8bit by rows": (eight_bit(None), True),
    "8bit, flat": (eight_bit(64, order="flat"), False),
    "4bit": ("4bit", False),  # a second moment under scales of rank one
    "4bit by blocks": (choose({"first": four_bit(64), "second": eight_bit(64)}), True),
    "float8": ("float8", True),
    "bfloat16": ("bfloat16", True),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", STORED)
def test_codes(name: str, check_vma: bool) -> None:
    """A shard of whole rows has its own blocks, or an error says that it needs others'."""
    storage, whole = STORED[name]
    params = {"kernel": jnp.linspace(-1.0, 1.0, 64 * 512).reshape(64, 512)}
    tx = aj.adamw(0.1, storage=storage)
    state, rows = tx.init(params), P("fsdp")
    specs = jax.tree.map(lambda x: rows if x.ndim > 1 else P(), state)
    if not whole:  # as far as a user gets
        specs = jax.tree.map(lambda x: rows if x.shape[:1] == (64,) else P(), state)
    places: Any = {"in_specs": (rows, specs, rows), "out_specs": (rows, specs)}
    update = jax.shard_map(tx.update, mesh=mesh(), **places, check_vma=check_vma)
    if whole:
        assert_close(jax.jit(update)(params, state, params), tx.update(params, state, params))
        return
    with pytest.raises(ValueError, match=r"a shard of shape \(8, 512\) .* scales of other devices"):
        update(params, state, params)


def test_codes_cut_along_the_rows_of_blocks() -> None:
    """Rows that are one block are cut by a shard of columns."""
    params = {"kernel": jnp.ones((64, 512))}
    tx, columns = aj.adamw(0.1, storage=eight_bit(None)), P(None, "fsdp")
    state = tx.init(params)
    specs = jax.tree.map(lambda x: columns if x.shape == (64, 512) else P(), state)
    places: Any = {"in_specs": (columns, specs, columns), "out_specs": columns}
    update = jax.shard_map(
        lambda g, s, p: tx.update(g, s, p)[0], mesh=mesh(), **places, check_vma=False
    )
    with pytest.raises(ValueError, match=r"a shard of shape \(64, 64\) .* scales of other devices"):
        update(params, state, params)


@pytest.mark.parametrize(
    "change",
    [lambda tx: aj.probe(tx), lambda tx: aj.pack_small_leaves(tx)],
    ids=["probe", "pack_small_leaves"],
)
def test_it_goes_with_the_recipe(change: Any) -> None:
    assert change(summed(aj.adamw(0.1))).norm_axes == ("fsdp",)
