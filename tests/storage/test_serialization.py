"""Coded states through serializers: flax, pickle, Orbax without a target, trees by names."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import adamw_jax as aj
from adamw_jax._core.encoded import encoded_like_names, is_encoded
from adamw_jax.storage import eight_bit
from adamw_jax.storage._formats import FORMATS
from tests.catalogue import assert_equal

pytestmark = pytest.mark.quick

PARAMS = {"b": jnp.ones(3), "c": jnp.ones(5), "w": jnp.ones((64, 128)), "x": jnp.ones((64, 127))}
TRANSFORMATIONS: dict[str, Any] = {
    **{f"adamw {word}": lambda word=word: aj.adamw(0.1, storage=word) for word in FORMATS},
    **{
        f"quantize_state {word} {rounding}": lambda word=word, rounding=rounding: aj.quantize_state(
            aj.adam(0.1), word, rounding=rounding
        )
        for word in FORMATS
        for rounding in ("nearest", "stochastic")
    },
    **{
        f"optax {word} {rounding}": lambda word=word, rounding=rounding: aj.quantize_state(
            optax.adamw(0.1), word, rounding=rounding
        )
        for word in FORMATS
        for rounding in ("nearest", "stochastic")
    },
    "optax flat": lambda: aj.quantize_state(optax.adamw(0.1), eight_bit(order="flat")),
    "optax rows, of a partition": lambda: optax.partition(
        {"x": aj.quantize_state(optax.adam(0.1), eight_bit(None)), "y": optax.sgd(0.1, 0.9)},
        {"b": "y", "c": "x", "w": "x", "x": "y"},
    ),
    "flat": lambda: aj.adamw(0.1, storage=eight_bit(order="flat")),
    "packed": lambda: aj.pack_small_leaves(aj.adamw(0.1), limit=64),
    "packed, 8 bits": lambda: aj.quantize_state(aj.pack_small_leaves(aj.adamw(0.1), limit=64)),
    "Lookahead": lambda: aj.compose(aj.adamw(0.1, storage="4bit"), aj.lookahead()),
}
TYPICAL = (
    *("adamw 8bit", "quantize_state 4bit stochastic", "packed, 8 bits", "Lookahead"),
    *("optax 4bit stochastic", "optax bfloat16 nearest", "optax rows, of a partition"),
)
every = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in TYPICAL else pytest.mark.slow) for x in TRANSFORMATIONS],
)


def stepped(tx: Any) -> Any:
    gradients = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size)).reshape(p.shape), PARAMS)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        return jax.jit(tx.update)(gradients, tx.init(PARAMS), PARAMS)[1]


@pytest.mark.sample(2)
@every
def test_flax_serialization_brings_a_state_back(name: str) -> None:
    tx = TRANSFORMATIONS[name]()
    state = stepped(tx)
    back = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    assert_equal(back, state)
    plain = serialization.to_state_dict(state)
    assert not [x for x in jax.tree.leaves(plain, is_leaf=is_encoded) if is_encoded(x)]
    assert_equal(serialization.from_state_dict(tx.init(PARAMS), plain), state)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(tx.update)(PARAMS, back, PARAMS)
        assert_equal(updates, jax.jit(tx.update)(PARAMS, state, PARAMS)[0])


def test_another_layout_is_refused_by_flax() -> None:
    data = serialization.to_bytes(stepped(aj.adamw(0.1, storage="8bit")))
    with pytest.raises(ValueError, match=r"rows256_v1_codes.*rows128_v1_codes"):
        serialization.from_bytes(aj.adamw(0.1, storage=eight_bit(128)).init(PARAMS), data)


@pytest.mark.sample(2)
@every
def test_pickle_and_copy(name: str) -> None:
    state = stepped(TRANSFORMATIONS[name]())
    assert_equal(pickle.loads(pickle.dumps(state)), state)
    assert_equal(copy.deepcopy(state), state)


def names_of(tree: Any, path: str = "") -> Any:
    """As in big_vision: by sorted keys, with lists and tuples by their index."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from names_of(tree[key], f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for i, child in enumerate(tree):
            yield from names_of(child, f"{path}/{i}")
    elif tree is not None:
        yield path, tree


@pytest.mark.sample(2)
@every
def test_a_traversal_by_names_sees_arrays_in_the_order_of_jax(name: str) -> None:
    state = stepped(TRANSFORMATIONS[name]())
    leaves, structure = jax.tree.flatten(state)
    names, places = zip(*names_of(structure.unflatten(range(len(leaves)))), strict=True)
    assert len(set(names)) == len(leaves)
    assert sorted(places) == [*range(len(leaves))]


@pytest.mark.slow
def test_flax_is_not_imported_and_may_come_later() -> None:
    """In a process of its own: a state that was there before flax."""
    program = """
import sys, jax.numpy as jnp, adamw_jax as aj
params = {"w": jnp.ones((64, 128))}
state = aj.adamw(0.1, storage="8bit").init(params)
assert "flax" not in sys.modules
from flax import serialization
data = serialization.to_bytes(state)
assert serialization.from_bytes(state, data).count == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@every
def test_names_give_the_layout_back(name: str, tmp_path: Any) -> None:
    """To a node alone, and to the state of any recipe or optimizer by ``migrate_state``."""
    tx = TRANSFORMATIONS[name]()
    state = stepped(tx)
    expected = [x for x in jax.tree.leaves(state, is_leaf=is_encoded) if is_encoded(x)]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state")
    for plain in (restored, serialization.to_state_dict(state), state):
        made = encoded_like_names(plain, jax.eval_shape(tx.init, PARAMS))
        found = [x for x in jax.tree.leaves(made, is_leaf=is_encoded) if is_encoded(x)]
        key = lambda x: (x.layout.name, x.layout.shape, np.asarray(x.codes).tobytes())  # noqa: E731
        found, wanted = sorted(found, key=key), sorted(expected, key=key)
        assert [x.layout for x in found] == [x.layout for x in wanted]
        for got, want in zip(found, wanted, strict=True):
            assert_equal(got, want)
        moved, report = aj.migrate_state(plain, tx, PARAMS)
        assert_equal(moved, state)
        assert (report.started, report.dropped, report.converted) == ((), (), ())


@pytest.mark.parametrize("make", [aj.adamw, optax.adamw], ids=["ours", "optax"])
def test_another_storage_needs_the_types(make: Any) -> None:
    """A plain state goes by way of the storage that wrote it."""
    old, new = (aj.quantize_state(make(0.1), word) for word in ("4bit", "8bit"))
    state = stepped(old)
    plain = serialization.to_state_dict(state)
    with pytest.raises(ValueError, match=r"_codes is in the checkpoint.*migrate to that first"):
        aj.migrate_state(plain, new, PARAMS)
    typed, _ = aj.migrate_state(plain, old, PARAMS)
    moved, _ = aj.migrate_state(typed, new, PARAMS)
    full = aj.storage.decode_state(state)
    expected = aj.storage.encode_state(full, PARAMS, aj.storage.choose("8bit"))
    assert_equal(moved, expected)


WITHOUT_A_RECIPE = {
    "another type": (optax.adabelief(0.1), r"a ScaleByAdamState where .* has a ScaleByBeliefState"),
    "another array": (optax.amsgrad(0.1), r"a ScaleByAdamState where .* a ScaleByAmsgradState"),
    "a recipe": (aj.adam(0.1), r"saved holds no recipe.*from_optax"),
}


@pytest.mark.parametrize("name", WITHOUT_A_RECIPE)
def test_another_optimizer_of_optax_is_refused(name: str) -> None:
    other, message = WITHOUT_A_RECIPE[name]
    state = aj.quantize_state(optax.adam(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match=message):
        aj.migrate_state(state, aj.quantize_state(other), PARAMS)
    if name == "another array":
        with pytest.raises(ValueError, match=r"nu_max/b is in the new recipe but not in the ch"):
            aj.migrate_state(serialization.to_state_dict(state), aj.quantize_state(other), PARAMS)


def test_a_layout_that_the_target_has_not() -> None:
    plain = serialization.to_state_dict(stepped(aj.adamw(0.1, storage="8bit")))
    target = aj.adamw(0.1, storage=eight_bit(128)).init(PARAMS)
    with pytest.raises(ValueError, match=r"/w holds codes dynamic8_signed_rows256_v1 .*storage="):
        encoded_like_names(plain, target)
    own = {"my_codes": jnp.ones(2), "table": {"x_codes": 1}}
    assert encoded_like_names(own, optax.adam(0.1).init(PARAMS)) == own
