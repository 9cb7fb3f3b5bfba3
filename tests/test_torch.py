"""Runs of PyTorch go on here: its state is converted, and 1cycle is that of OneCycleLR."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj

FOLDER = pathlib.Path(__file__).parent / "data" / "torch"
BEFORE = json.loads((FOLDER / "manifest.json").read_text())["before"]
NAMES = ["weight", "bias"]
RECIPES = {
    "adam": lambda: aj.adam(0.05, l2=0.02),
    "adamw": lambda: aj.adamw(0.05, 0.8, 0.95, weight_decay=0.1),
    "amsgrad": lambda: aj.adamw(0.05, 0.9, 0.8, weight_decay=0.01, amsgrad=True),
    "radam": lambda: aj.radam(0.05, 0.9, 0.9, below="momentum"),
    "sgd": lambda: aj.sgdw(0.05, momentum=0.9),
}


def read(name: str) -> dict[str, dict[str, Any]]:
    """The arrays of a recorded run, by what they are and by leaf."""
    found: dict[str, Any] = {}
    with np.load(FOLDER / f"{name}.npz") as held:
        for key in held:
            kind, leaf, *field = key.split("/")
            place = found.setdefault(kind, {})
            if field:
                place.setdefault(leaf, {})[field[0]] = held[key]
            else:
                place[leaf] = held[key]
    return found


def state_dict(name: str) -> dict[str, Any]:
    """What ``optimizer.state_dict()`` was after ten steps."""
    options = json.loads((FOLDER / "manifest.json").read_text())["runs"][name]
    entries = read(name)["state"]
    group = {"params": [0, 1], "param_names": NAMES}
    if name != "sgd":
        group["betas"] = tuple(options.get("betas", (0.9, 0.999)))
    return {"state": {i: dict(entries[k]) for i, k in enumerate(NAMES)}, "param_groups": [group]}


def trained(tx: Any, params: Any, state: Any, gradients: Any, steps: range) -> Any:
    """Parameters after some of the gradients."""
    for i in steps:
        updates, state = tx.update(
            {k: jnp.asarray(g[i]) for k, g in gradients.items()}, state, params
        )
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("by", ["order", "names"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_torch_goes_on(name: str, by: str) -> None:
    """Ten steps there and ten here end where twenty there did."""
    run, count = read(name), BEFORE if name == "sgd" else None
    names = NAMES if by == "order" else {"weight": "weight", "bias": 1}
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, run["middle"])
        tx = RECIPES[name]()
        state = aj.from_torch(state_dict(name), tx, params, names=names, count=count)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
        assert int(state.count) == BEFORE
        end = trained(tx, params, state, run["gradient"], range(BEFORE, 2 * BEFORE))
        for leaf, expected in run["end"].items():
            np.testing.assert_allclose(end[leaf], expected, rtol=0, atol=1e-9)


def test_layouts_are_converted() -> None:
    """A kernel of torch.nn.Linear is transposed here; tensors are recognized by their methods."""

    class Tensor(np.ndarray):
        detach = cpu = numpy = lambda self: self

    saved, run = state_dict("adamw"), read("adamw")
    saved["state"][0] = {k: np.asarray(v).view(Tensor) for k, v in saved["state"][0].items()}
    params = {"kernel": jnp.asarray(run["middle"]["weight"].T), "bias": jnp.zeros(2)}
    state = aj.from_torch(
        saved,
        aj.adamw(0.05),
        params,
        names=["kernel", "bias"],
        convert=lambda name, x: x.T if name == "kernel" else x,
    )
    got = state.stages["estimate_moments"].first.moment["kernel"]
    np.testing.assert_allclose(got, run["state"]["weight"]["exp_avg"].T, rtol=1e-6)


def broken(change: str) -> dict[str, Any]:
    """A state with one mistake."""
    saved = state_dict("adamw")
    if change == "entries":
        saved["state"][0]["mu_product"] = saved["state"][1]["mu_product"] = np.ones(())
    elif change == "step":
        saved["state"][0]["step"] = np.float32(3)
    elif change == "missing":
        del saved["state"][1]
    elif change == "betas":
        saved["param_groups"] = [
            {"params": [0], "betas": (0.9, 0.99)},
            {"params": [1], "betas": (0.8, 0.99)},
        ]
    return saved


@pytest.mark.parametrize(
    ("change", "tx", "options", "words"),
    [
        ("entries", aj.adamw(0.1), {}, "only the states of Adam, AdamW"),
        ("step", aj.adamw(0.1), {}, "different steps"),
        ("missing", aj.adamw(0.1), {}, r"no state for \['bias'\]"),
        ("betas", aj.adamw(0.1), {}, "different betas"),
        ("", aj.adamw(0.1), {"names": ["bias", "weight"]}, "has shape"),
        ("", aj.adamw(0.1), {"names": ["weight"]}, "saved has 2 parameters"),
        ("", aj.adamw(0.1), {"names": ["weight", "scale"]}, "no leaves of params"),
        ("", aj.adamw(0.1), {"count": 3}, "count=3"),
        ("", aj.adamw(0.1, amsgrad=True), {}, "only tx has AMSGrad"),
        ("", aj.adabelief(0.1), {}, "CenteredSquaresState"),
        ("", aj.sgdw(0.1), {}, "HeavyBallState"),
        ("", aj.lion(0.1), {}, "no estimate_moments"),
    ],
)
def test_what_does_not_fit_is_named(change: str, tx: Any, options: Any, words: str) -> None:
    """Another optimizer, missing entries, another order."""
    params = jax.tree.map(jnp.asarray, read("adamw")["middle"])
    with pytest.raises(ValueError, match=words):
        aj.from_torch(broken(change), tx, params, **{"names": NAMES, **options})


def test_sgd_needs_its_count() -> None:
    """PyTorch does not count the steps of SGD."""
    params = jax.tree.map(jnp.asarray, read("sgd")["middle"])
    with pytest.raises(ValueError, match="give count="):
        aj.from_torch(state_dict("sgd"), aj.sgdw(0.1), params, names=NAMES)


def test_one_cycle_with_adamw_is_that_of_torch() -> None:
    """The preset brings the bias correction it was made with; the exact one moves otherwise."""
    run = read("adamw_one_cycle")
    cycle = aj.one_cycle(0.05, 20, "pytorch")
    with jax.enable_x64(True):
        start = jax.tree.map(jnp.asarray, run["start"])

        def end(**options: Any) -> Any:
            tx = aj.adamw(cycle, b2=0.99, weight_decay=0.01, **options)
            return trained(tx, start, tx.init(start), run["gradient"], range(20))

        for leaf, expected in run["end"].items():
            np.testing.assert_allclose(end()[leaf], expected, rtol=0, atol=1e-9)
        exact = end(bias_correction="exact")
        assert np.abs(exact["weight"] - run["end"]["weight"]).max() > 1e-3


@pytest.mark.parametrize("name", ["generalized_signsgd", "lamb", "adan", "lion", "sgdw"])
def test_the_preset_asks_no_correction_of_those_that_make_none(name: str) -> None:
    """They are made without an error, as with the other presets."""
    off = {"lamb": {"correct": False}, "adan": {"start": "first_gradient"}}.get(name, {})
    aj.create(name, aj.one_cycle(0.05, 20, "pytorch"), **off)
