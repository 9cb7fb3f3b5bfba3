"""The hyperparameters of the golden manifests as arguments of the public functions: one table.

A row says which function reproduces a source's form of a system, under which of its arguments each
hyperparameter of the source goes, which arguments that form always has, and the source's defaults.
A hyperparameter that its row does not name is an error, and so is a system that has no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import adamw_jax as aj
from tests import golden_adafactor, golden_koala, golden_lookahead, golden_other
from tests.golden_cases import Case
from tests.golden_rows import (
    Name,
    Only,
    Options,
    Row,
    ascent,
    dampening,
    decay_if,
    decayed_leaves,
    dtype,
    l2_if,
    labels,
    rates,
    same,
    torch_clip,
    where,
    whole_clip,
)
from tests.golden_schedules import (
    ARTICLE,
    FASTAI1,
    FASTAI2,
    authors_restarts,
    cycle_of,
    decay_schedule,
    paper_restarts,
)

# PyTorch, and code that takes its names.

BETAS = rates("b1", "b2")
TORCH: dict[str, Name] = {
    **labels("foreach", "fused", "capturable", "differentiable"),
    "lr": "learning_rate",
    "betas": BETAS,
    "eps": "eps",
    "maximize": ascent,
}
TORCH_DEFAULTS = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}
ADAM: dict[str, Name] = {**TORCH, **same("amsgrad")}
L2: dict[str, Name] = {"weight_decay": "l2"}
DECAY: dict[str, Name] = same("weight_decay")
FLAG = "decoupled_weight_decay"
EITHER: dict[str, Name] = {"weight_decay": decay_if(FLAG), FLAG: None}
EPS_HAT = {"eps_hat": True}
EPS_OUTSIDE = {"eps_inside_max": False}
FALLBACK = {True: "momentum", False: "skip"}
MOMENTUM_BELOW = {"below": "momentum"}


def torch_row(
    function: Any, names: Mapping[str, Name], options: Any = None, **defaults: Any
) -> Row:
    return Row(function, names, options or {}, {**TORCH_DEFAULTS, **defaults})


def decay_in_words(value: float, case: Case) -> Options:
    """Adam and AdamW have ``amsgrad``: a flag or the manifest's words say which of them it is."""
    if not value:
        return {}
    decay, l2 = "decoupled" in case.says, "L2" in case.says
    flag = case.hyperparameters.get(FLAG, decay if decay != l2 else None)
    assert flag is not None, f"{case.label}: L2 or decoupled decay? The manifest says neither"
    return {"weight_decay" if flag else "l2": value}


FAIRSEQ: dict[str, Name] = {
    **same("weight_decay"),
    "lr": "learning_rate",
    **dict.fromkeys(("betas", "adam_betas", "adamax_betas"), BETAS),
    **dict.fromkeys(("eps", "adam_eps", "adamax_eps"), "eps"),
}
FAIRSEQ_ADAM: dict[str, Name] = {**FAIRSEQ, **same("amsgrad")}
KERAS: dict[str, Name] = {
    **same("learning_rate", "amsgrad", "weight_decay"),
    **{"lr": "learning_rate", "betas": BETAS, "beta_1": "b1", "beta_2": "b2"},
    **dict.fromkeys(("eps", "epsilon"), "eps"),
    "global_clipnorm": whole_clip,
    **dict.fromkeys(("clipnorm", "clipvalue", "loss_scale_factor"), Only((None,))),
    **dict.fromkeys(("gradient_accumulation_steps", "use_ema"), Only((None, False))),
    **labels("ema_momentum", "ema_overwrite_frequency", "name"),
}
ALWAYS_AMSGRAD: dict[str, Name] = {"amsgrad": Only((True,))}
KERAS_DEFAULTS = {**TORCH_DEFAULTS, "eps": 1e-7}
OPTAX: dict[str, Name] = same("learning_rate", "b1", "b2", "eps", "weight_decay", "mask")
OPTAX_ROOT: dict[str, Name] = {**OPTAX, **same("eps_root"), "mu_dtype": dtype}
OPTAX_ADAM: dict[str, Name] = {**OPTAX_ROOT, **same("nesterov")}
SGD: dict[str, Name] = {
    **same("momentum", "nesterov", "weight_decay"),
    "dampening": dampening,
    **{"lr": "learning_rate", "weight_decay": "l2", "maximize": ascent},
    **labels("foreach", "fused", "differentiable"),
}

# The AdamW paper and its authors' code.

BY_SCHEDULE = {"decay": "schedule"}
AUTHORS: dict[str, Name] = {
    **labels("alg", "nBatches", "Te", "Tmult", "LRdec"),
    "LR": "base_learning_rate",
    "learningRateDecay": Only((0, None)),
}
AUTHORS_ADAM: dict[str, Name] = {
    "betas": BETAS,
    **{"beta1": "b1", "beta2": "b2", "eps": "eps", "epsilon": "eps"},
    "momentum": None,  # an option of the training script, which its Adam does not read
}


def authors_normalised(case: Case) -> np.ndarray | None:
    """Normalised decay of the recorded period: wd / sqrt(updates in it)."""
    h = case.hyperparameters
    return h["wd"] / np.sqrt(h["nBatches"] * case.arrays["Te"]) if "Te" in case.arrays else None


def authors(
    algorithm: str, function: Callable[..., Any], names: Any, options: Options, **defaults: Any
) -> list[Row]:
    """The three forms of the AdamW authors' code: L2, decay, normalised decay."""
    forms: list[tuple[str, Name, Any]] = [
        ("", "l2", {}),
        ("dec", "weight_decay", {}),
        ("W", None, {"weight_decay": authors_normalised}),
    ]
    return [
        Row(
            function,
            {**AUTHORS, **names, "wd": name},
            {**options, **BY_SCHEDULE},
            {"wd": 0.0, "Tmult": 1, "LRdec": "true", **defaults},
            {"learning_rate": "lr", **normalised},
            authors_restarts(normalized=bool(normalised)),
            when={"alg": algorithm + suffix},
        )
        for suffix, name, normalised in forms
    ]


def scaled_eta(case: Case) -> np.ndarray | None:
    """The paper's alpha eta_t: an array, or one number for all steps."""
    h = case.hyperparameters
    eta = case.arrays.get("eta") if isinstance(h["eta"], str) else np.full(case.steps, h["eta"])
    return None if eta is None else h["alpha"] * eta


def paper(function: Callable[..., Any], names: Mapping[str, Name], **options: Any) -> Row:
    """The paper's algorithms: alpha is the base by which the decay divides the rate again."""
    return Row(
        function,
        {"alpha": "base_learning_rate", "lam": "weight_decay", "eta": None, **names},
        {**BY_SCHEDULE, **options},
        {"eta": 1.0},
        {"learning_rate": scaled_eta},
        paper_restarts,
    )


# fastai.

FASTAI: dict[str, Name] = {
    **{"lr": "learning_rate", "mom": "b1", "sqr_mom": "b2", "eps": "eps"},
    "wd": decay_if("decouple_wd"),
    "decouple_wd": None,
    "beta": Only((0, None)),  # a softplus in the place of eps
}
FASTAI_DEFAULTS = {"mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.0, "decouple_wd": True}
CYCLE_OF_ADAM: dict[str, Any] = {
    "options": {"bias_correction": "current"},
    "recorded": {"learning_rate": "lr", "b1": "beta1"},
}


def phases(function: Callable[..., Any], names: Mapping[str, Name], **row: Any) -> Row:
    """fastai 0.7's phases around one of PyTorch's optimizers."""
    known = {**dict.fromkeys(ARTICLE.names), "wd_loss": None, "wd": l2_if("wd_loss"), **names}
    return Row(
        function,
        {**known, "clip": torch_clip, "sgd": None},
        defaults={"wd": 0.0, "wd_loss": True, "sgd": False},
        own=cycle_of(ARTICLE),
        **row,
    )


def ranger(sync_period: int, slow_step_size: float, **options: Any) -> Any:
    """Lookahead around RAdam."""
    return aj.lookahead(aj.radam(**options), sync_period, slow_step_size)


TABLE: dict[tuple[str, str], list[Row]] = {
    ("sgd", "torch"): [
        Row(aj.sgdw, SGD, defaults={"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0})
    ],
    ("sgd", "optax"): [
        Row(
            aj.sgdw,
            {**same("learning_rate", "momentum", "nesterov"), "accumulator_dtype": Only((None,))},
            {"weight_decay": None},
            {"momentum": None},
        )
    ],
    ("adam", "torch"): [torch_row(aj.adam, {**ADAM, **EITHER}, **{FLAG: False})],
    ("adam", "fairseq"): [torch_row(aj.adam, FAIRSEQ_ADAM, EPS_HAT)],
    ("adam", "keras"): [Row(aj.adam, KERAS, EPS_HAT, KERAS_DEFAULTS)],
    ("adam", "optax"): [Row(aj.adam, OPTAX_ADAM)],
    ("adamax", "torch"): [torch_row(aj.adamax, {**TORCH, **L2}, lr=2e-3)],
    ("adamax", "keras"): [Row(aj.adamax, KERAS, EPS_OUTSIDE, KERAS_DEFAULTS)],
    ("adamax", "fairseq"): [
        torch_row(
            aj.adamax,
            {**FAIRSEQ, "bias_correction": Only((True,)), "no_bias_correction": Only((False,))},
            EPS_OUTSIDE,
        )
    ],
    ("adamax", "optax"): [Row(aj.adamax, OPTAX)],
    ("adamw", "torch"): [torch_row(aj.adamw, {**ADAM, **DECAY}, weight_decay=1e-2)],
    ("adamw", "fairseq"): [torch_row(aj.adamw, FAIRSEQ_ADAM, EPS_HAT, weight_decay=0.0)],
    ("adamw", "optax"): [Row(aj.adamw, OPTAX_ADAM)],
    ("adamwr", "loshchil"): authors(
        "ADAM", aj.adamw, AUTHORS_ADAM, {**EPS_HAT, "weight_decay": None}
    ),
    ("adamwr", "paper"): [
        paper(aj.adamw, {"beta1": "b1", "beta2": "b2", "betas": BETAS, "eps": "eps"})
    ],
    ("sgdwr", "loshchil"): authors(
        "SGD",
        aj.sgdw,
        {**same("momentum", "nesterov"), "dampening": dampening},
        {},
        momentum=0.9,
    ),
    ("sgdwr", "paper"): [paper(aj.sgdw, {"beta1": "momentum"}, schedule_inside=True)],
    ("amsgrad", "torch"): [
        torch_row(
            aj.amsgrad, {**ADAM, **ALWAYS_AMSGRAD, "weight_decay": decay_in_words, FLAG: None}
        )
    ],
    ("amsgrad", "fairseq"): [torch_row(aj.amsgrad, FAIRSEQ_ADAM | ALWAYS_AMSGRAD, EPS_HAT)],
    ("amsgrad", "keras"): [Row(aj.amsgrad, KERAS | ALWAYS_AMSGRAD, EPS_HAT, KERAS_DEFAULTS)],
    ("amsgrad", "optax"): [
        Row(
            aj.amsgrad,
            {**OPTAX_ROOT, **same("bias_correction_mu", "bias_correction_nu")},
            {"maximum": "corrected"},
        )
    ],
    ("radam", "radam_official"): [
        torch_row(
            aj.radam,
            {
                **TORCH,
                **DECAY,
                "degenerated_to_sgd": where(below={True: "momentum", False: "skip"}),
            },
            EPS_HAT,
        )
    ],
    ("radam", "torch"): [
        torch_row(aj.radam, {**TORCH, **EITHER}, {**EPS_HAT, **MOMENTUM_BELOW}, **{FLAG: False})
    ],
    ("radam", "optax"): [Row(aj.radam, {**OPTAX_ADAM, **same("threshold")}, MOMENTUM_BELOW)],
    ("radam", "fastai2"): [Row(aj.radam, FASTAI, MOMENTUM_BELOW, FASTAI_DEFAULTS)],
    ("lookahead", "fastai2"): [
        Row(
            ranger,
            {**FASTAI, "k": "sync_period", "alpha": "slow_step_size"},
            MOMENTUM_BELOW,
            {**FASTAI_DEFAULTS, "mom": 0.95, "wd": 0.01, "eps": 1e-6, "k": 6, "alpha": 0.5},
        )
    ],
    ("fastai_onecycle", "fastai07"): [
        phases(
            aj.sgdw,
            labels("eps", "beta2") | {"amsgrad": Only((False,)), **same("nesterov")},
            recorded={"learning_rate": "lr", "momentum": "beta1"},
            when={"sgd": True},
        ),
        phases(
            aj.adam,
            {"beta2": "b2", "eps": "eps", **same("amsgrad")},
            when={"sgd": False},
            **CYCLE_OF_ADAM,
        ),
    ],
    ("fastai_onecycle", "fastai1"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(FASTAI1.names),
                "wd": decay_if("true_wd"),
                "true_wd": None,
                "bn_wd": decayed_leaves,
                **same("b2", "eps", "amsgrad"),
            },
            defaults={"wd": 1e-2, "true_wd": True, "b2": 0.99},
            own=cycle_of(FASTAI1),
            **CYCLE_OF_ADAM,
        )
    ],
    ("fastai_onecycle", "fastai2"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(FASTAI2.names),
                "wd": decay_if("decouple"),
                "decouple": None,
                **{"sqr_mom": "b2", "eps": "eps"},
            },
            defaults={"wd": 1e-2, "decouple": True, "sqr_mom": 0.99, "eps": 1e-5},
            own=cycle_of(FASTAI2),
            own_share=1e-6,
            **CYCLE_OF_ADAM,
        )
    ],
    ("fastai_wdsched", "fastai07"): [
        Row(
            golden_lookahead.apply,
            {
                **labels("lr", "wds", "cycle_len", "cycle_mult", "norm_wds", "mult"),
                **labels("batches_per_epoch", "epochs", "wds_sched_mult"),
                "optimizer": golden_lookahead.optimizer,
            },
            defaults={
                **{"cycle_len": None, "cycle_mult": 1, "norm_wds": False},
                **{"mult": False, "wds_sched_mult": "lr_t/lr_0"},
            },
            recorded={"learning_rate": "lr", "weight_decay": "wd_out"},
            own=decay_schedule,
        )
    ],
}
TABLE |= golden_other.ROWS | golden_koala.ROWS | golden_adafactor.ROWS | golden_lookahead.ROWS


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
        arguments = {**row.arguments(case, own_schedules), **changed}
        before = arguments.pop("before", None)
        made = row.function(**arguments)
        return made if before is None else aj.compose(before, made)

    if changed:
        return make()
    key = (_recipe(case), own_schedules, jax.dtypes.canonicalize_dtype(float))
    if key not in _BUILT:
        _BUILT[key] = make()
    return _BUILT[key]


_BUILT: dict[Any, Any] = {}


def _recipe(case: Case) -> str:
    """All that decides how a case is built, the recorded schedules among it."""
    told = ("system", "source_key", "hyperparameters", "notes", "role", "leaves")
    mine = ("params_", "grads_", "slow_", "avg_", "fn_")
    recorded = {
        name: array.shape if name.startswith(mine) else array.tolist()
        for name, array in case.arrays.items()
    }
    return json.dumps([{key: case.entry.get(key) for key in told}, recorded], sort_keys=True)
