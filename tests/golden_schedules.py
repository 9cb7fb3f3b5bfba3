"""Schedules of the golden manifests as public calls: a table of rows, by source.

A row serves the recorded schedules and, as ``own``, the trajectories that used one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamw_jax as aj
from tests.golden_cases import Case, assert_arrays
from tests.golden_rows import Name, Only, Options, Row, labels, same, where

Arrays = dict[str, np.ndarray]


def momenta(value: Any, case: Case) -> Options:
    """Two or three momenta, or one for all of the cycle; None leaves the momentum alone."""
    return {"momentum": (value, value) if isinstance(value, float) else value and tuple(value)}


def steps_of(case: Case) -> int:
    """Steps of a trajectory, or of a recorded schedule."""
    return case.steps if case.leaves else len(case.arrays["lr"])


def article(
    lr: float,
    nbs: list[float],
    moms: Any,
    batches_per_epoch: int,
    div: float,
    lin_end: bool,
) -> Any:
    """The article's phases: a preset where its ramps are of one length, or a list of phases."""
    momentum = (moms, moms) if isinstance(moms, float) else tuple(moms)
    lengths = [epochs * batches_per_epoch for epochs in nbs]
    total, (start, *_, end) = sum(lengths), lengths
    if np.isclose(total, round(total)) and np.isclose(lengths[-2], lengths[-3]):
        plateau = {"pct_start": start / total} if len(nbs) == 4 else {}
        return aj.one_cycle(
            lr,
            round(total),
            "article_plateau" if plateau else "article",
            momentum=momentum,
            div=div,
            pct_end=end / total,
            linear_end=lin_end,
            **plateau,
        )
    high, low, last = (*momentum, momentum[0])[:3]
    ramps: list[tuple[Any, Any]] = [((lr / div, lr), (high, low)), ((lr, lr / div), (low, last))]
    if len(nbs) == 4:
        ramps.insert(1, (lr, low))
    ramps.append(((lr / div, lr / (100 * div) if lin_end else 0.0), last))
    shapes = ["linear"] * (len(nbs) - 1) + ["linear" if lin_end else "cosine"]
    return aj.phases(
        [
            aj.Phase(steps=steps, learning_rate=rate, momentum=momentum, shape=shape)
            for steps, (rate, momentum), shape in zip(lengths, ramps, shapes, strict=True)
        ]
    )


def last_div(value: float | None, case: Case) -> Options:
    """fastai v1 takes 1e4 times the first divisor where there is none."""
    return {"final_div": 1e4 * case.hyperparameters["div_factor"] if value is None else value}


def whole_div(value: float, case: Case) -> Options:
    """optax divides the first value, not the peak."""
    return {"final_div": case.hyperparameters["div_factor"] * value}


def cycled(value: bool, case: Case) -> Options:
    high, low = (case.hyperparameters[f"{end}_momentum"] for end in ("max", "base"))
    return {"momentum": (high, low) if value else None}


def share(value: float, case: Case) -> Options:
    return {"pct_end": value / 100}


def in_epochs(value: int, case: Case) -> Options:
    return {"total_steps": value * case.hyperparameters["steps_per_epoch"]}


def final_factor(value: float, case: Case) -> Options:
    return {"min_learning_rate": value * case.hyperparameters["lr"]}


def start_by_div(value: float, case: Case) -> Options:
    return {"div": case.hyperparameters["lr"] / value}


def preset(name: str, names: dict[str, Name], **selection: Any) -> Row:
    return Row(aj.one_cycle, names, {"preset": name}, **selection)


TWO_ENDS: dict[str, Name] = {
    **dict.fromkeys(("lr", "lr_max"), "max_learning_rate"),
    **dict.fromkeys(("mom", "moms"), momenta),
    **dict.fromkeys(("pct", "pct_start"), "pct_start"),
    **same("total_steps"),
}
USE_CLR: dict[str, Name] = {
    "lr_max": "max_learning_rate",
    "nb": "total_steps",
    "momentums": momenta,
    "div": "div",
}
NO_MOMENTA: dict[str, Any] = {"momentums": None}
OPTAX: dict[str, Name] = {
    "transition_steps": "total_steps",
    "peak_value": "max_learning_rate",
    "pct_start": "pct_start",
    "div_factor": "div",
}
DIVISORS = {"div_factor": 25.0, "final_div_factor": 1e4}
LINEAR = preset(
    "optax_linear", {**OPTAX, "pct_final": "pct_final", "final_div_factor": "final_div"}
)

ARTICLE = Row(
    article,
    {**same("lr", "nbs", "moms", "batches_per_epoch", "div", "lin_end"), **labels("epochs")},
    defaults={"div": 10.0, "lin_end": False},
    has=("nbs",),
)
FASTAI1 = preset(
    "fastai_v1",
    {**TWO_ENDS, "div_factor": "div", "final_div": last_div},
    defaults={"div_factor": 25.0, "final_div": None},
)
FASTAI2 = preset("fastai_v2", {**TWO_ENDS, "div": "div", "div_final": "final_div"})

SCHEDULES: dict[str, list[Row]] = {
    "fastai07": [
        ARTICLE,
        Row(
            aj.warm_restarts,
            {"lr_max": "learning_rate", "nb": "first_period", "cycle_mult": "multiplier"},
            {"convention": "fastai07"},
            has=("cycle_mult",),
        ),
        preset(
            "slanted_triangle",
            {**USE_CLR, "cut_div": "cut_div"},
            defaults=NO_MOMENTA,
            has=("cut_div",),
        ),
        preset("fastai_07", {**USE_CLR, "pct": share}, defaults=NO_MOMENTA),
    ],
    "fastai1": [FASTAI1],
    "fastai2": [FASTAI2],
    "torch": [
        Row(
            aj.warm_restarts,
            {
                **dict.fromkeys(("base_lr", "lr"), "learning_rate"),
                "T_0": "first_period",
                "T_mult": "multiplier",
                "eta_min": "min_learning_rate",
                "last_epoch": Only((-1,)),
            },
            defaults={"T_mult": 1},
            has=("T_0",),
        ),
        preset(
            "pytorch",
            {
                "max_lr": "max_learning_rate",
                "total_steps": "total_steps",
                "epochs": in_epochs,
                "steps_per_epoch": None,
                "pct_start": "pct_start",
                "div_factor": "div",
                "final_div_factor": "final_div",
                "three_phase": "three_phase",
                "anneal_strategy": where(shape={"cos": "cosine", "linear": "linear"}),
                "cycle_momentum": cycled,
                **labels("base_momentum", "max_momentum"),
                "last_epoch": Only((-1,)),
            },
            defaults={"base_momentum": 0.85, "max_momentum": 0.95, "cycle_momentum": True},
        ),
    ],
    "optax": [
        dataclasses.replace(LINEAR, has=("pct_final",)),
        dataclasses.replace(LINEAR, says="linear"),
        preset("fastai_v1", {**OPTAX, "final_div_factor": whole_div}, defaults=DIVISORS),
    ],
    "epfml": [
        Row(
            aj.schedules.wsd,
            {
                "n_iterations": "total_steps",
                "n_warmup": "warmup_steps",
                "init_div_factor": "div",
                "fract_decay": "pct_end",
                "decay_type": where(
                    shape={"sqrt": "1-sqrt", "linear": "linear", "cosine": "cosine"}
                ),
                "final_lr_factor": final_factor,
                "lr": "max_learning_rate",
            },
        )
    ],
    "fairseq": [
        Row(
            aj.schedules.inverse_root,
            {
                "lr": "max_learning_rate",
                "warmup_updates": "warmup_steps",
                "warmup_init_lr": start_by_div,
            },
        )
    ],
    "loshchil": [
        Row(
            aj.warm_restarts,
            {
                "LR": "learning_rate",
                "Te": "first_period",
                "Tmult": "multiplier",
                **dict.fromkeys(("batches_per_epoch", "nBatches"), "steps_per_epoch"),
            },
            {"convention": "authors", "normalized_decay": 1.0},
        )
    ],
}


def schedules_of(row: Row, case: Case, steps: int) -> Any:
    """What a row makes of the hyperparameters of a case that are a schedule's."""
    arguments = row.arguments(case)
    if row.function is aj.warm_restarts:
        arguments["total_steps"] = steps
    if row.function is aj.one_cycle:
        arguments = {"total_steps": steps, **arguments}
    return row.function(**arguments)


def cycle_of(row: Row) -> Callable[[Case], Options]:
    """The cycle of a trajectory, from those of its hyperparameters that the row names."""

    def make(case: Case) -> Options:
        told = {k: v for k, v in case.hyperparameters.items() if k in row.names}
        return {"learning_rate": schedules_of(row, case.changed(hyperparameters=told), case.steps)}

    return make


def replay_schedule(case: Case) -> Arrays:
    """The arrays of a recorded schedule, computed by the public functions."""
    rows = SCHEDULES.get(case.source, ())
    row = next((row for row in rows if row.fits(case)), None)
    assert row is not None, f"{case.label}: no schedule of {case.source!r} has its hyperparameters"
    steps = len(case.arrays["lr"])
    made = schedules_of(row, case, steps)
    got = {"lr": series(made.learning_rate, steps)}
    if getattr(made, "momentum", None) is not None:
        got["mom"] = series(made.momentum, steps)
    if getattr(made, "weight_decay", None) is not None:
        # lambda_norm = 1 decays by 1 / sqrt(updates in the period), which gives the period back.
        got["Te"] = series(made.weight_decay, steps) ** -2 / row.arguments(case)["steps_per_epoch"]
    return got


def series(schedule: Callable[[Any], Any], steps: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps, dtype=jnp.int32)))


# The range test.


def range_test(case: Case, stops: bool = True, **options: Any) -> Arrays:
    """The public test on a step that replays the recorded losses."""
    recorded = case.arrays["raw_loss"]
    found = aj.lr_range_test(
        lambda index, rate, batch: (index + 1, recorded[index]),
        0,
        [None],
        **({} if stops else {"stop_factor": float("inf")}),
        **options,
    )
    return {
        "raw_loss": found.losses,
        "lr": found.learning_rates,
        "smooth_loss": found.smoothed,
        "stop_index": np.asarray([len(found.losses) - 1]),
        **{f"suggest_{name}": np.asarray([rate]) for name, rate in found.suggestions.items()},
    }


FINDER: dict[str, Name] = {
    "start_lr": "start",
    "end_lr": "end",
    **dict.fromkeys(("nb", "num_it"), "num_steps"),
    "stop_div": "stops",
    "linear": where(mode={False: "exponential", True: "linear"}),
    **labels("trim", "float64"),  # of the plot, and of how it was recorded
}
FINDERS: dict[str, Row] = {
    "fastai07": Row(
        range_test, FINDER, {"best_after": 11}, defaults={"start_lr": 1e-5, "end_lr": 10.0}
    ),
    **dict.fromkeys(
        ("fastai1", "fastai2"),
        Row(range_test, FINDER, defaults={"start_lr": 1e-7, "end_lr": 10.0, "num_it": 100}),
    ),
}


def check_schedule(case: Case) -> None:
    """Every recorded array is reproduced."""
    if "raw_loss" in case.arrays:
        assert case.source in FINDERS, f"{case.label}: no range test of {case.source!r}"
        got = range_test(case, **FINDERS[case.source].arguments(case))
    else:
        got = replay_schedule(case)
    unknown = sorted(set(case.arrays) - set(got))
    assert not unknown, f"{case.label}: nothing computes the arrays {unknown}"
    assert_arrays(case, {name: got[name] for name in case.arrays})


# Schedules of trajectories that are not a cycle.


def decay_schedule(case: Case) -> Options | None:
    """fastai 0.7 ``use_wd_sched``: cosine cycles or none, decay normalised by the cycle or not.

    Without cycles an epoch counts as one. None where the decay follows another multiplier.
    """
    h = case.hyperparameters
    if h["mult"] and h["wds_sched_mult"] != "lr_t/lr_0":
        return None
    epoch = h["batches_per_epoch"]
    if h["cycle_len"] is None:
        decay = aj.normalized_decay(h["wds"], epoch) if h["norm_wds"] else h["wds"]
        return {"learning_rate": h["lr"], "weight_decay": decay}
    restarts = aj.warm_restarts(
        h["lr"],
        h["cycle_len"],
        h["cycle_mult"],
        steps_per_epoch=epoch,
        normalized_decay=h["wds"],
        convention="fastai07",
        total_steps=case.steps,
    )
    normalized = restarts.weight_decay

    def decay(count: Any) -> Any:
        assert normalized is not None
        value = normalized(count) if h["norm_wds"] else h["wds"]
        return value * restarts.multiplier(count) if h["mult"] else value

    return {"learning_rate": restarts.learning_rate, "weight_decay": decay}


def authors_restarts(normalized: bool) -> Callable[[Case], Options]:
    """The schedule of the AdamW authors' code, which may leave the rate as it is."""

    def make(case: Case) -> Options:
        h = case.hyperparameters
        if str(h["LRdec"]).lower() == "false":
            decay = aj.normalized_decay(h["wd"], h["nBatches"] * h["Te"])
            return {"learning_rate": h["LR"], **({"weight_decay": decay} if normalized else {})}
        restarts = aj.warm_restarts(
            h["LR"],
            h["Te"],
            h["Tmult"],
            steps_per_epoch=h["nBatches"],
            normalized_decay=h["wd"] if normalized else None,
            convention="authors",
            total_steps=case.steps,
        )
        return {"learning_rate": restarts}

    return make


def paper_restarts(case: Case) -> Options | None:
    """Cosine restarts in the paper's indexing, where the manifest gives the periods."""
    h = case.hyperparameters
    told = re.search(r"T0=(\d+), Tmult=(\d+)", str(h["eta"]))
    if told is None:
        return None
    return {"learning_rate": aj.warm_restarts(h["alpha"], int(told[1]), int(told[2]))}
