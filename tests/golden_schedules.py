"""Schedules of the golden manifests as public calls, by source and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamw_jax as aj

Arrays = Mapping[str, np.ndarray]


def _series(schedule: Callable[[Any], Any], steps: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps, dtype=jnp.int32)))


def _cycle(cycle: aj.OneCycle, arrays: Arrays) -> dict[str, np.ndarray]:
    steps = len(arrays["lr"])
    both = {"lr": cycle.learning_rate, "mom": cycle.momentum}
    return {name: _series(both[name], steps) for name in arrays}


def _fastai07(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    if "nbs" in h:
        total = h.pop("epochs") * h.pop("batches_per_epoch")
        whole, high_low = sum(h["nbs"]), tuple(h.pop("moms"))
        preset = "article" if len(h["nbs"]) == 3 else "article_plateau"
        options = {"pct_end": h["nbs"][-1] / whole, "linear_end": h.pop("lin_end")}
        if preset == "article_plateau":
            options["pct_start"] = h["nbs"][0] / whole
        h.pop("nbs")
        cycle = aj.one_cycle(
            h.pop("lr"), round(total), preset, momentum=high_low, div=h.pop("div"), **options
        )
        return _cycle(cycle, arrays)
    if "cycle_mult" in h:
        restarts = aj.warm_restarts(
            h.pop("lr_max"),
            h.pop("nb"),
            h.pop("cycle_mult"),
            convention="fastai07",
            total_steps=len(arrays["lr"]),
        )
        return {"lr": _series(restarts.learning_rate, len(arrays["lr"]))}
    top, total, div = h.pop("lr_max"), h.pop("nb"), h.pop("div")
    high_low = tuple(h.pop("momentums"))
    if "cut_div" in h:
        cycle = aj.one_cycle(
            top, total, "slanted_triangle", momentum=high_low, div=div, cut_div=h.pop("cut_div")
        )
    else:
        cycle = aj.one_cycle(
            top, total, "fastai_07", momentum=high_low, div=div, pct_end=h.pop("pct") / 100
        )
    return _cycle(cycle, arrays)


def _fastai1(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    cycle = aj.one_cycle(
        h.pop("lr_max"),
        h.pop("total_steps"),
        "fastai_v1",
        momentum=tuple(h.pop("moms")),
        pct_start=h.pop("pct_start"),
        div=h.pop("div_factor"),
        final_div=h.pop("final_div"),
    )
    return _cycle(cycle, arrays)


def _fastai2(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    cycle = aj.one_cycle(
        h.pop("lr_max"),
        h.pop("total_steps"),
        "fastai_v2",
        momentum=tuple(h.pop("moms")[:2]),
        pct_start=h.pop("pct_start"),
        div=h.pop("div"),
        final_div=h.pop("div_final"),
    )
    return _cycle(cycle, arrays)


def _torch(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    if "T_0" in h:
        restarts = aj.warm_restarts(
            h.pop("base_lr"), h.pop("T_0"), h.pop("T_mult"), min_learning_rate=h.pop("eta_min")
        )
        return {"lr": _series(restarts.learning_rate, len(arrays["lr"]))}
    names = {
        "anneal_strategy": "shape",
        "three_phase": "three_phase",
        "pct_start": "pct_start",
        "div_factor": "div",
        "final_div_factor": "final_div",
    }
    top, total = h.pop("max_lr"), h.pop("total_steps")
    options = {ours: h.pop(theirs) for theirs, ours in names.items() if theirs in h}
    return _cycle(aj.one_cycle(top, total, "pytorch", **options), arrays)


def _optax(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    top, total = h.pop("peak_value"), h.pop("transition_steps")
    if "pct_final" in h:
        cycle = aj.one_cycle(top, total, "optax_linear", pct_final=h.pop("pct_final"))
    else:
        cycle = aj.one_cycle(top, total)
    return _cycle(cycle, arrays)


def _loshchil(h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    steps, epoch = len(arrays["lr"]), h.pop("batches_per_epoch")
    restarts = aj.warm_restarts(
        h.pop("LR"),
        h.pop("Te"),
        h.pop("Tmult"),
        steps_per_epoch=epoch,
        normalized_decay=1.0,
        convention="authors",
        total_steps=steps,
    )
    assert restarts.weight_decay is not None
    # lambda_norm = 1 decays by 1 / sqrt(updates in the period), which gives the period back.
    updates = 1.0 / _series(restarts.weight_decay, steps) ** 2
    return {"lr": _series(restarts.learning_rate, steps), "Te": updates / epoch}


def _finder(source: str, h: dict[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    """The public test on a step that replays the recorded losses."""
    recorded = arrays["raw_loss"]
    steps = h.pop("nb") if "nb" in h else h.pop("num_it")
    for told in ("trim", "float64"):  # of the plot, and of how it was recorded
        h.pop(told, None)
    stops = h.pop("stop_div", True)
    found = aj.lr_range_test(
        lambda index, rate, batch: (index + 1, recorded[index]),
        0,
        [None],
        start=h.pop("start_lr"),
        end=h.pop("end_lr"),
        num_steps=steps,
        **({} if stops else {"stop_factor": float("inf")}),
        best_after=11 if source == "fastai07" else 0,
    )
    result = {
        "raw_loss": found.losses,
        "lr": found.learning_rates,
        "smooth_loss": found.smoothed,
        "stop_index": np.asarray([len(found.losses) - 1]),
    }
    for name, rate in found.suggestions.items():
        result[f"suggest_{name}"] = np.asarray([rate])
    return {name: result[name] for name in arrays}


TABLE: dict[str, Callable[[dict[str, Any], Arrays], dict[str, np.ndarray]]] = {
    "fastai07": _fastai07,
    "fastai1": _fastai1,
    "fastai2": _fastai2,
    "torch": _torch,
    "optax": _optax,
    "loshchil": _loshchil,
}


def replay_schedule(entry: Mapping[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays of a schedule entry, computed by the public functions.

    Raises:
      KeyError: a source or hyperparameter that the table does not know.
    """
    left = dict(entry["hyperparameters"])
    source = entry["source_key"]
    known = TABLE[source]
    result = _finder(source, left, arrays) if "raw_loss" in arrays else known(left, arrays)
    if left:
        raise KeyError(f"{entry['name']}: unknown hyperparameters {sorted(left)}")
    return result
