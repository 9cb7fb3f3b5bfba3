"""The hyperparameters of the golden manifests as arguments of the public functions: one table.

A row says which function reproduces a source's form of a system, under which of its arguments each
hyperparameter goes, and which arguments that form always has. A hyperparameter that its row does
not name is an error, and so is a system that has no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax

import adamw_jax as aj
from tests import golden_adafactor, golden_koala, golden_other
from tests.golden_cases import Case
from tests.golden_own_schedules import (
    article_cycle,
    authors_restarts,
    decay_schedule,
    fastai_v1_cycle,
    fastai_v2_cycle,
    paper_restarts,
)
from tests.golden_rows import (
    EPS_HAT,
    TORCH,
    Name,
    Options,
    Row,
    adam_in_words,
    after,
    authors_normalised,
    decay_or_l2,
    fallback,
    inner,
    inner_state,
    only_matrices,
    ranger,
    reset_state,
    scaled_eta,
    torch_clip,
)

OPTAX: dict[str, Name] = {
    name: name for name in ("learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay", "mask")
}
L2: dict[str, Name] = {"weight_decay": "l2"}
DECAY: dict[str, Name] = {"weight_decay": "weight_decay"}
FASTAI: dict[str, Name] = {
    "lr": "learning_rate",
    "mom": "b1",
    "sqr_mom": "b2",
    "eps": "eps",
    "wd": "weight_decay",
}

PHASES: dict[str, Name] = {
    **dict.fromkeys(("lr", "moms", "div", "nbs", "lin_end", "wd", "batches_per_epoch")),
    "wd_loss": decay_or_l2(flag_for_l2=True),
    "clip": torch_clip,
}
ADAM_PHASES: dict[str, Name] = {"beta2": "b2", "eps": "eps", "amsgrad": "amsgrad"}
FASTAI_CORRECTION = {"bias_correction": "current"}
CYCLED = {"learning_rate": "lr", "b1": "beta1"}

AUTHORS: dict[str, Name] = {
    **dict.fromkeys(("nBatches", "Te", "Tmult", "LRdec")),
    "LR": "base_learning_rate",
}
AMSGRAD = {"amsgrad": True}
BY_SCHEDULE = {"decay": "schedule"}
RATE = {"learning_rate": "lr"}


def authors(
    algorithm: str, function: Callable[..., Any], extra: Any, options: Options
) -> list[Row]:
    """The three forms of the AdamW authors' code: L2, decay, normalised decay."""
    forms: list[tuple[str, Name, bool]] = [
        ("", "l2", False),
        ("dec", "weight_decay", False),
        ("W", authors_normalised, True),
    ]
    return [
        Row(
            function,
            {**AUTHORS, **extra, "wd": name},
            {**options, **BY_SCHEDULE},
            RATE,
            authors_restarts(normalized),
            when={"alg": algorithm + suffix},
        )
        for suffix, name, normalized in forms
    ]


TABLE: dict[tuple[str, str], list[Row]] = {
    ("adam", "torch"): [Row(aj.adam, {**TORCH, **L2})],
    ("adam", "fairseq"): [Row(aj.adam, {**TORCH, **DECAY}, EPS_HAT)],
    ("adam", "keras"): [Row(aj.adam, TORCH, EPS_HAT)],
    ("adam", "optax"): [Row(aj.adam, {**OPTAX, "nesterov": "nesterov"})],
    ("adamax", "torch"): [Row(aj.adamax, {**TORCH, **L2})],
    ("adamax", "keras"): [Row(aj.adamax, TORCH, {"eps_inside_max": False})],
    ("adamax", "fairseq"): [Row(aj.adamax, {**TORCH, **DECAY}, {"eps_inside_max": False})],
    ("adamax", "optax"): [Row(aj.adamax, OPTAX)],
    ("adamw", "torch"): [Row(aj.adamw, {**TORCH, **DECAY})],
    ("adamw", "fairseq"): [Row(aj.adamw, {**TORCH, **DECAY}, EPS_HAT)],
    ("adamw", "optax"): [Row(aj.adamw, {**OPTAX, "nesterov": "nesterov"})],
    ("adamwr", "loshchil"): authors("ADAM", aj.adamw, {}, {**EPS_HAT, "weight_decay": None}),
    ("adamwr", "paper"): [
        Row(
            aj.adamw,
            {
                "alpha": None,
                "beta1": "b1",
                "beta2": "b2",
                "eps": "eps",
                "lam": "weight_decay",
                "eta": scaled_eta,
            },
            BY_SCHEDULE,
            own=paper_restarts,
        )
    ],
    ("sgdwr", "loshchil"): authors("SGD", aj.sgdw, {"momentum": "momentum"}, {}),
    ("sgdwr", "paper"): [
        Row(
            aj.sgdw,
            {"alpha": None, "beta1": "momentum", "lam": "weight_decay", "eta": scaled_eta},
            {**BY_SCHEDULE, "schedule_inside": True},
            own=paper_restarts,
        )
    ],
    ("amsgrad", "torch"): [
        Row(aj.amsgrad, {**TORCH, **L2}, when=AMSGRAD, says="L2 in the gradient"),
        Row(aj.amsgrad, {**TORCH, **DECAY}, when=AMSGRAD, says="decoupled decay"),
        Row(aj.amsgrad, TORCH, when={**AMSGRAD, "weight_decay": 0.0}),
    ],
    ("amsgrad", "keras"): [Row(aj.amsgrad, TORCH, EPS_HAT)],
    ("amsgrad", "optax"): [
        Row(
            aj.amsgrad,
            {**OPTAX, **{f"bias_correction_{m}": f"bias_correction_{m}" for m in ("mu", "nu")}},
            {"maximum": "corrected"},
        )
    ],
    ("radam", "radam_official"): [
        Row(aj.radam, {**TORCH, **DECAY, "degenerated_to_sgd": fallback}, EPS_HAT)
    ],
    ("radam", "torch"): [
        Row(
            aj.radam,
            {**TORCH, **DECAY},
            {**EPS_HAT, "below": "momentum"},
            when={"decoupled_weight_decay": True},
        ),
        Row(
            aj.radam,
            {**TORCH, **L2, "decoupled_weight_decay": None},
            {**EPS_HAT, "below": "momentum"},
        ),
    ],
    ("radam", "optax"): [Row(aj.radam, {**OPTAX, "threshold": "threshold"}, {"below": "momentum"})],
    ("radam", "fastai2"): [Row(aj.radam, FASTAI, {"below": "momentum"})],
    ("lookahead", "lookahead_official"): [
        Row(
            aj.lookahead,
            {
                "inner": inner,
                "k": "sync_period",
                "alpha": "slow_step_size",
                "pullback_momentum": inner_state,
            },
        )
    ],
    ("lookahead", "optax"): [
        Row(
            aj.lookahead,
            {
                "inner": inner,
                "sync_period": "sync_period",
                "slow_step_size": "slow_step_size",
                "reset_state": reset_state,
            },
        )
    ],
    ("lookahead", "fastai2"): [
        Row(
            ranger,
            {**FASTAI, "k": "sync_period", "alpha": "slow_step_size"},
            {"below": "momentum"},
        )
    ],
    ("fastai_onecycle", "fastai07"): [
        Row(
            after,
            {**PHASES, "eps": None},
            {"optimizer": aj.sgdw},
            {"learning_rate": "lr", "momentum": "beta1"},
            article_cycle,
            when={"sgd": True},
        ),
        Row(
            after, {**PHASES, **ADAM_PHASES, "sgd": None}, FASTAI_CORRECTION, CYCLED, article_cycle
        ),
    ],
    ("fastai_onecycle", "fastai1"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr_max", "pct_start", "div_factor", "final_div", "moms")),
                **dict.fromkeys(("total_steps", "wd")),
                "true_wd": decay_or_l2(flag_for_l2=False),
                "bn_wd": only_matrices,
                "b2": "b2",
                "eps": "eps",
            },
            FASTAI_CORRECTION,
            CYCLED,
            fastai_v1_cycle,
        )
    ],
    ("fastai_onecycle", "fastai2"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr", "mom", "pct", "div", "div_final", "wd")),
                "decouple": decay_or_l2(flag_for_l2=False),
                "sqr_mom": "b2",
                "eps": "eps",
            },
            FASTAI_CORRECTION,
            CYCLED,
            fastai_v2_cycle,
            own_rtol=1e-6,
        )
    ],
    ("fastai_wdsched", "fastai07"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr", "wds", "cycle_len", "norm_wds", "mult")),
                **dict.fromkeys(("batches_per_epoch", "epochs", "wds_sched_mult")),
                "optimizer": adam_in_words,
            },
            {},
            {"learning_rate": "lr", "weight_decay": "wd_out"},
            decay_schedule,
        )
    ],
}
TABLE |= golden_other.ROWS | golden_koala.ROWS | golden_adafactor.ROWS
TABLE["lookahead", "pytorch_optimizer"] = TABLE["lookahead", "lookahead_official"]


def row_of(case: Case) -> Row:
    """The row of a case."""
    rows = TABLE.get((case.system, case.source), ())
    fitting = next((row for row in rows if row.fits(case)), None)
    assert fitting is not None, (
        f"{case.label}: no row for the system {case.system!r} of {case.source!r} with "
        f"{case.hyperparameters}"
    )
    return fitting


def build(case: Case, *, own_schedules: bool = False, **changed: Any) -> Any:
    """The transformation of a case; ``changed`` arguments make it another one.

    Cases that differ in their gradients only share it, and so one compilation.
    """
    row = row_of(case)

    def make() -> Any:
        return row.function(**{**row.arguments(case, own_schedules), **changed})

    if changed:
        return make()
    key = (_recipe(case), own_schedules, jax.dtypes.canonicalize_dtype(float))
    if key not in _BUILT:
        _BUILT[key] = make()
    return _BUILT[key]


_BUILT: dict[Any, Any] = {}


def _recipe(case: Case) -> str:
    """All that decides how a case is built, the recorded schedules among it."""
    told = ("system", "source_key", "hyperparameters", "notes", "role", "leaves", "steps")
    recorded = {
        name: array.tolist()
        for name, array in case.arrays.items()
        if not name.startswith(("params_", "grads_", "slow_", "fn_"))
    }
    return json.dumps([{key: case.entry.get(key) for key in told}, recorded], sort_keys=True)
