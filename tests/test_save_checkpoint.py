"""``save_checkpoint``: everything comes back to the bit, and what does not fit is refused."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.state import _sealed, restore_checkpoint, save_checkpoint
from tests.catalogue import assert_equal
from tests.data.checkpoints.record import RUNS, check, recorded

PARAMS = {
    "linear/~": {"w": jnp.linspace(-1, 1, 512).reshape(8, 64)},
    "empty": jnp.zeros((0, 3)),
    "half": jnp.ones(3, jnp.bfloat16),
}
TX = aj.skip_bad_steps(
    aj.compose(
        aj.adamw(
            optax.linear_schedule(0.1, 0.0, 50), storage=aj.storage.choose("8bit", min_size=64)
        ),
        aj.lookahead(sync_period=2),
        aj.update.stochastic_rounding(seed=jax.random.key(3)),
    )
)
DATA = {"position": 7, "weights": np.arange(3, dtype=np.int64), "iterator": b"\x00\xff", "t": (1,)}


@jax.jit
def moved(params: Any, state: Any, key: Any, loss: Any) -> tuple[Any, Any]:
    keys = iter(jax.random.split(key, 3))
    gradient = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape, p.dtype), params)
    updates, state = TX.update(gradient, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def train(params: Any, state: Any, key: Any, steps: int) -> tuple[Any, Any, Any]:
    for _ in range(steps):
        key, now = jax.random.split(key)
        params, state = moved(params, state, now, 1.0)
    return params, state, key


@pytest.fixture(scope="module")
def run() -> tuple[Any, Any, Any]:
    """Parameters, state and key after three steps, the last of them skipped."""
    params, state, key = train(PARAMS, jax.jit(TX.init)(PARAMS), jax.random.key(5), 2)
    return *moved(params, state, key, np.nan), key


@pytest.fixture(scope="module")
def saved(run: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    params, state, key = run
    save_checkpoint(folder, 3, TX, params, state, rng={"dropout": key}, data=DATA)
    return folder


def test_the_run_goes_on_to_the_bit(saved: pathlib.Path, run: Any) -> None:
    """Parameters, codes, slow weights, counts of skipped steps, rounding keys, schedule, rng."""
    back = restore_checkpoint(saved, TX, PARAMS)
    assert jax.tree.structure(back.state) == jax.tree.structure(run[1])
    assert_equal((back.params, back.state), run[:2])
    assert int(aj.read_skips(back.state)["skipped"]) == 1
    ends = train(back.params, back.state, back.rng["dropout"], 3)
    assert_equal(ends[:2], train(*run, 3)[:2])
    assert (back.step, back.recipe, back.report) == (3, repr(TX), None)
    weights = back.data.pop("weights")
    assert back.data == {"position": 7, "iterator": b"\x00\xff", "t": [1]}
    assert weights.dtype == np.int64
    np.testing.assert_array_equal(weights, DATA["weights"])


def test_the_manifest_says_what_is_there(saved: pathlib.Path, run: Any) -> None:
    about = json.loads((saved / "1-step3" / "manifest.json").read_text())
    assert about["versions"] == {"adamw_jax": aj.__version__, "jax": jax.__version__}
    assert about["recipe"] == repr(TX)
    half = about["arrays"]["params/half"]
    assert (half["dtype"], half["shape"], len(half["sha256"])) == ("bfloat16", [3], 64)
    assert len(about["arrays"]) == len(jax.tree.leaves(run[:2]))


def test_the_last_ones_are_kept_in_the_order_of_saving(tmp_path: pathlib.Path) -> None:
    """A run that goes back to an earlier step does not lose what it saves to later ones."""
    params, tx = {"w": jnp.ones(2)}, aj.sgdw(0.1)
    for step in (10, 20, 15, 15):
        path = save_checkpoint(tmp_path, step, tx, params, tx.init(params), keep=3)
    assert path.name == "4-step15"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["2-step20", "3-step15", "4-step15"]
    assert restore_checkpoint(tmp_path, tx, params).step == 15
    assert restore_checkpoint(tmp_path, tx, params, step=20).step == 20
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 10 .* steps \[15, 20\]"):
        restore_checkpoint(tmp_path, tx, params, step=10)


OTHER = {
    "optimizer": (aj.sgdw(0.1), {}, r"squares/half is in the checkpoint only|more. Give params"),
    "accumulator": (aj.adamw(0.1, amsgrad=True), {}, r"does not fit: .* and \d+ more"),
    "leaf": (TX, {"bias": jnp.ones(2)}, "params/bias is not in the checkpoint"),
    "shape": (TX, {"half": jnp.ones(4, "bfloat16")}, r"half was saved with shape \[3\] and has"),
    "dtype": (TX, {"half": jnp.ones(3)}, "half was saved with dtype bfloat16 and has float32 now"),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_tree_is_refused(saved: pathlib.Path, what: str) -> None:
    tx, change, message = OTHER[what]
    with pytest.raises(ValueError, match=message) as error:
        restore_checkpoint(saved, tx, PARAMS | change)
    assert repr(TX) in str(error.value)


SAME_ARRAYS = [(aj.adabelief, aj.acprop), (aj.acprop, aj.adabelief), (aj.adam, aj.lamb)]


@pytest.mark.parametrize(("was", "now"), SAME_ARRAYS, ids=lambda make: make.__name__)
def test_another_optimizer_with_the_same_arrays_is_refused(
    tmp_path: pathlib.Path, was: Any, now: Any
) -> None:
    """In a wrapper, too; whoever wants it names the one that saved."""
    params = {"w": jnp.ones(2)}
    for around in (lambda tx: tx, aj.skip_bad_steps, lambda tx: optax.chain(optax.clip(1.0), tx)):
        old, new = around(was(0.1)), around(now(0.1))
        state = old.init(params)
        assert jax.tree.structure(state) == jax.tree.structure(new.init(params))
        save_checkpoint(tmp_path, 1, old, params, state)
        for options in ({}, {"saved_by": new}):
            with pytest.raises(ValueError, match=r"by the stages .* as saved_by=") as error:
                restore_checkpoint(tmp_path, new, params, **options)
            assert ("delay_second" in str(error.value)) == (aj.lamb not in (was, now))
        back = restore_checkpoint(tmp_path, new, params, saved_by=old)
        assert back.report is not None
        assert not back.report.started
        save_checkpoint(tmp_path, 2, new, params, back.state)
        assert restore_checkpoint(tmp_path, new, params).step == 2


EDITS = {
    "numbers": aj.adamw(0.5, 0.8, weight_decay=0.0),
    "a schedule": aj.adamw(optax.linear_schedule(0.1, 0.0, 10)),
    "a clip": aj.compose(optax.clip(1.0), aj.adamw(0.1)),
    "nesterov": aj.adamw(0.1, nesterov=True),
    "a factor of rules": aj.adamw(
        0.1, rules=aj.parameter_rules({"w": aj.Rule(learning_rate_factor=0.5)})
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_that_keep_the_state_need_no_word(tmp_path: pathlib.Path, edit: str) -> None:
    params, old, new = {"w": jnp.ones(2)}, aj.adamw(0.1), EDITS[edit]
    for was, now in ((old, new), (new, old)):
        save_checkpoint(tmp_path, 1, was, params, was.init(params))
        assert restore_checkpoint(tmp_path, now, params).report is None


WRAPPED = {
    "a guard": aj.skip_bad_steps(aj.adamw(0.1)),
    "a tail": aj.compose(aj.adamw(0.1), aj.lookahead()),
    "an average": aj.compose(aj.adamw(0.1), aj.average_iterates(kind="ema")),
    "micro-batches": optax.MultiSteps(aj.adamw(0.1), 2),
    "codes": aj.quantize_state(aj.adamw(0.1), min_size=1),
}


@pytest.mark.parametrize("edit", WRAPPED)
def test_wrappers_and_tails_come_and_go(tmp_path: pathlib.Path, edit: str) -> None:
    params, old, new = {"w": jnp.ones(2)}, aj.adamw(0.1), WRAPPED[edit]
    for was, now in ((old, new), (new, old)):
        save_checkpoint(tmp_path, 1, was, params, was.init(params))
        back = restore_checkpoint(tmp_path, now, params, saved_by=was)
        assert back.report is not None
        stages = json.loads((tmp_path / "1-step1" / "manifest.json").read_text())["stages"]
        assert stages == [["estimate_moments", "correct_bias", "precondition", "decoupled_decay"]]


def test_no_dtype_of_a_state_is_cast(tmp_path: pathlib.Path) -> None:
    """Orbax casts without a word."""
    params = {"w": jnp.ones(2)}
    half = aj.adamw(0.1, state_dtype="bfloat16")
    save_checkpoint(tmp_path, 1, half, params, half.init(params))
    with pytest.raises(ValueError, match="was saved with dtype bfloat16 and has float32 now"):
        restore_checkpoint(tmp_path, aj.adamw(0.1), params)
    back = restore_checkpoint(tmp_path, aj.adamw(0.1), params, saved_by=half)
    assert back.report is not None
    assert "stages/estimate_moments/first/average/w" in back.report.converted


def test_parameters_of_numpy_and_in_boxes(tmp_path: pathlib.Path) -> None:
    """float64 stays so without x64, and Flax finds its boxes again."""
    wide, tx = {"w": np.linspace(0.0, 1.0, 3)}, aj.sgdw(0.1)
    save_checkpoint(tmp_path, 1, tx, wide, tx.init(wide))
    assert_equal(restore_checkpoint(tmp_path, tx, wide).params, wide)
    assert restore_checkpoint(tmp_path, tx, wide).params["w"].dtype == np.float64
    boxed = nnx.state(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Param)
    save_checkpoint(tmp_path, 2, tx, boxed, tx.init(boxed))
    back = restore_checkpoint(tmp_path, tx, boxed)
    assert isinstance(back.params["kernel"], nnx.Param)
    assert_equal(nnx.to_pure_dict(back.params), nnx.to_pure_dict(boxed))


def test_kinds_of_keys_are_not_mixed(tmp_path: pathlib.Path) -> None:
    params = {"w": jnp.ones(2)}
    fry, rbg = (
        optax.add_noise(0.1, 0.5, jax.random.key(7, impl=impl)) for impl in ("threefry2x32", "rbg")
    )
    save_checkpoint(tmp_path, 2, fry, params, fry.init(params), rng=jax.random.key(3, impl="rbg"))
    with pytest.raises(ValueError, match=r"was saved with dtype key<fry> and has key<rbg> now"):
        restore_checkpoint(tmp_path, rbg, params)
    back = restore_checkpoint(tmp_path, fry, params)
    assert_equal(*(jax.random.key_data(x.rng_key) for x in (back.state, fry.init(params))))
    assert str(jax.random.key_impl(back.rng)) == "rbg"


def test_edits_go_through_migrate_state(saved: pathlib.Path, run: Any) -> None:
    """``saved_by`` is the recipe that was saved, or a state of it."""
    tx = aj.compose(aj.clip_gradient(1.0), aj.adamw(0.1))
    for by in (TX, jax.eval_shape(TX.init, PARAMS)):
        back = restore_checkpoint(saved, tx, PARAMS, saved_by=by)
        assert back.report is not None
        assert "stages/lookahead/slow/linear/~/w" in back.report.dropped
        assert_equal(back.state, aj.migrate_state(run[1], tx, run[0])[0])
    with pytest.raises(ValueError, match="stages/amsgrad_max/maximum"):
        restore_checkpoint(saved, aj.adamw(0.1, amsgrad=True), PARAMS, saved_by=TX)


def test_leaves_that_joined_late(tmp_path: pathlib.Path) -> None:
    layers = {"body": jnp.ones(2), "head": jnp.ones(2)}
    recipe = aj.adamw(0.1)
    head = aj.compose(recipe, frozen="body")
    save_checkpoint(tmp_path, 1, head, layers, head.init(layers))
    thawed = restore_checkpoint(tmp_path, recipe, layers, saved_by=head, thaw=True).state
    _, thawed = recipe.update(layers, thawed, layers)
    save_checkpoint(tmp_path, 2, recipe, layers, thawed)
    back = restore_checkpoint(tmp_path, recipe, layers, saved_by=thawed, thaw=True)
    assert_equal(back.state, thawed)


def test_other_values_than_were_saved_are_refused(saved: pathlib.Path, run: Any) -> None:
    """Whole files may yet be those of other arrays, which have digests of their own."""
    params, state, _ = run
    folder = saved.parent / "forged"
    changed = params | {"half": params["half"].at[1].add(1)}
    path = save_checkpoint(folder, 3, TX, changed, state)
    (path / "manifest.json").write_bytes((saved / "1-step3" / "manifest.json").read_bytes())
    _sealed.seal(path)
    with pytest.raises(ValueError, match="read other values of params/half than were saved"):
        restore_checkpoint(folder, TX, PARAMS)


def test_a_newer_format_asks_for_an_update(tmp_path: pathlib.Path) -> None:
    params, tx = {"w": jnp.ones(2)}, aj.sgdw(0.1)
    path = save_checkpoint(tmp_path, 1, tx, params, tx.init(params))
    about = json.loads((path / "manifest.json").read_text())
    about |= {"format": 2, "versions": {"adamw_jax": "9.0"}}
    (path / "manifest.json").write_text(json.dumps(about))
    _sealed.seal(path)
    with pytest.raises(ValueError, match=r"written by adamw_jax 9\.0, whose format 2 .*: update"):
        restore_checkpoint(tmp_path, tx, params)


@pytest.mark.parametrize("folder", recorded(), ids=lambda path: f"{path.parent.name} {path.name}")
def test_checkpoints_of_earlier_releases_go_on(folder: pathlib.Path) -> None:
    check(folder)


def test_release_0_1_is_recorded() -> None:
    assert {*RUNS} <= {each.name for each in recorded() if each.parent.name == "0.1"}


def test_what_is_refused_at_once(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    params, tx = {"w": jnp.ones(2)}, aj.sgdw(0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match="step must be"):
        save_checkpoint(tmp_path, -1, tx, params, state)
    with pytest.raises(ValueError, match="keep must be"):
        save_checkpoint(tmp_path, 1, tx, params, state, keep=0)
    with pytest.raises(TypeError, match=r"data/a/1 must consist of JSON values.*got <object"):
        save_checkpoint(tmp_path, 1, tx, params, state, data={"a": [1, object()]})
    with pytest.raises(ValueError, match="two arrays are called 'params/a/b'"):
        save_checkpoint(tmp_path, 1, tx, {"a/b": params["w"], "a": {"b": params["w"]}}, state)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        restore_checkpoint(tmp_path, tx, params)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'adamw-jax\[checkpoints\]'"):
        save_checkpoint(tmp_path, 1, tx, params, state)
    assert not [*tmp_path.iterdir()]


def test_orbax_reads_the_arrays_too(saved: pathlib.Path, run: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(saved / "1-step3" / "arrays")
    assert_equal(arrays["params/half"], run[0]["half"])


@pytest.mark.devices
def test_other_numbers_of_devices(tmp_path: pathlib.Path) -> None:
    """8, 4 and 1 devices: numbers and shardings are as asked, whoever saved."""
    tx = aj.compose(aj.adamw(0.1, storage=aj.storage.choose("8bit", min_size=64)), aj.lookahead())
    params: Any = {"w": jnp.arange(64.0).reshape(8, 8)}
    state = tx.init(params)
    for count in (8, 4, 1):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        rows = NamedSharding(mesh, P("data"))
        shapes = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=rows)}
        save_checkpoint(tmp_path, count, tx, params, state)
        back = restore_checkpoint(tmp_path, tx, shapes)
        assert_equal(jax.device_get(back[1:3]), jax.device_get((params, state)))
        params, state = back.params, back.state
        wanted = aj.state_shardings(tx, shapes, rows)
        for x, place in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
            assert x.sharding.is_equivalent_to(place, x.ndim)
