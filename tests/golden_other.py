"""Rows of the golden table for the optimizers beyond the Adam family, from the authors' code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import adamw_jax as aj
from adamw_jax._core.record import Moments
from adamw_jax._core.stage import Kind, Step, stage
from tests.golden_cases import Case
from tests.golden_rows import (
    Name,
    Only,
    Options,
    Row,
    dampening,
    decay_if,
    labels,
    not_offered,
    rates,
    same,
    where,
)

RATE: dict[str, Name] = {**labels("_seed", "foreach"), "lr": "learning_rate"}
PLAIN: dict[str, Name] = {**RATE, **same("eps"), "betas": rates("b1", "b2")}
DECOUPLED: dict[str, Name] = {"weight_decay": decay_if("decoupled"), "decoupled": None}
DECOUPLED_WD: dict[str, Name] = {"weight_decay": decay_if("decoupled_wd"), "decoupled_wd": None}
ALWAYS = {"decoupled": True}
NEVER = {"decoupled_wd": False}


def acprop_decay(value: float, case: Case) -> Options:
    if not case.hyperparameters["weight_decouple"]:
        return {"l2": value}
    fixed = {"decay": "fixed"} if case.hyperparameters["fixed_decay"] else {}
    return {"weight_decay": value, **fixed}


def acprop_maximum(value: bool, case: Case) -> Options:
    """In the rectified branch the authors' maximum only adds eps to the variance."""
    assert not (value and case.hyperparameters["rectify"]), not_offered("amsgrad", value, case)
    return {"amsgrad": value}


def clip(limit: float, case: Case) -> Options:
    return {"max_grad_norm": limit or None}


def diffgrad_with_live_buffer(
    learning_rate: float, b1: float, b2: float, eps: float, l2: float = 0.0
) -> Any:
    """The authors' first version: the previous gradient *is* the gradient from step 2 on."""

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        def factor(g: jax.Array) -> jax.Array:
            return lax.logistic(lax.select(step.count == 0, lax.abs(g), jnp.zeros_like(g)))

        return record.scaled(jax.tree.map(factor, record.gradient)), state

    return aj.compose(
        aj.l2_decay(l2),
        aj.estimate_moments(aj.ema(b1), aj.ema_of_squares(b2)),
        stage("live_buffer", Kind.MOMENTS, Kind.MOMENTS, apply),
        aj.correct_bias(),
        aj.precondition(eps, eps_hat=True),
        aj.scale_by_learning_rate(learning_rate),
    )


def averaged_sgd(start: int, period: int, **options: Any) -> Any:
    """SWA: SGD with momentum, and the equal-weight average of its iterates."""
    return aj.compose(aj.sgdw(**options), aj.average_iterates(start=start, period=period))


def cautious_decay(direction: Any, learning_rate: float, weight_decay: float) -> Any:
    """A direction with decay that never works against it."""
    return aj.compose(
        direction,
        aj.decoupled_decay(weight_decay, cautious=True),
        aj.scale_by_learning_rate(learning_rate),
    )


def adamw_with_cautious_decay(b1: float, b2: float, eps: float, **options: float) -> Any:
    return cautious_decay(aj.scale_by_adam(b1, b2, eps), **options)


def lion_with_cautious_decay(b1: float, b2: float, **options: float) -> Any:
    return cautious_decay(aj.scale_by_lion(b1, b2), **options)


def first_cautious_lion(learning_rate: float, b1: float, b2: float, weight_decay: float) -> Any:
    """The authors' first version: n / (moving elements + 1) in place of n / moving elements."""

    def one_more(u: jax.Array) -> jax.Array:
        moving = jnp.count_nonzero(u).astype(u.dtype)
        return u * moving / (moving + 1)

    def apply(direction: Any, state: Any, step: Step) -> tuple[Any, Any]:
        del step
        return jax.tree.map(one_more, direction), state

    return aj.compose(
        aj.scale_by_lion(b1, b2),
        aj.cautious(),
        stage("one_more", Kind.DIRECTION, Kind.DIRECTION, apply),
        aj.decoupled_decay(weight_decay),
        aj.scale_by_learning_rate(learning_rate),
    )


def restarted(after: Sequence[int], **options: Any) -> Any:
    """Adan whose moments start anew by hand after these steps."""
    tx = aj.adan(**options)

    def init(params: Any) -> Any:
        return jnp.zeros([], jnp.int32), tx.init(params)

    def update(gradient: Any, state: Any, params: Any = None) -> Any:
        count, before = state
        due = jnp.any(count == jnp.asarray(after, jnp.int32))
        anew = aj.restart_moments(before)
        before = jax.tree.map(lambda new, old: jnp.where(due, new, old), anew, before)
        updates, state = tx.update(gradient, before, params)
        return updates, (count + 1, state)

    return optax.GradientTransformation(init, update)


def restarts(case: Case) -> list[int]:
    """The steps after which the manifest tells of a restart."""
    told = re.search(r"restart_opt\(\) is called[^:;.]* steps? ([\d, and]+)", case.says)
    assert told, f"{case.label}: after which steps is restart_opt() called?"
    return [int(step) for step in re.findall(r"\d+", told[1])]


def adan(after: Sequence[int], steps: int, **options: Any) -> Any:
    """Restarts at regular steps are those of ``restart_period``."""
    if list(after) == list(range(after[0], steps, after[0])):
        return aj.adan(restart_period=after[0], **options)
    return restarted(after, **options)


VERSIONS = {0: "abs", 1: "signed", 2: "wide"}
PNM: dict[str, Name] = {**RATE, **DECOUPLED, "betas": rates("b1", "b0")}
ADAPNM: dict[str, Name] = {
    **PLAIN,
    **DECOUPLED,
    **same("amsgrad"),
    "betas": rates("b1", "b2", "b0"),
}
ADAN: dict[str, Name] = {
    **PLAIN,
    **labels("fused"),
    "betas": rates("b1", "b2", "b3"),
    "weight_decay": "weight_decay",
    "no_prox": where(decay={True: "learning_rate", False: "proximal"}),
    "max_grad_norm": clip,
}
ACPROP: dict[str, Name] = {
    **PLAIN,
    **labels("weight_decouple", "fixed_decay", "bias_correction"),
    **same("rectify"),
    "amsgrad": acprop_maximum,
    "weight_decay": acprop_decay,
    "degenerated_to_sgd": where(below={True: "momentum", False: "decay"}),
    "momentum_update": where(numerator={True: "momentum", False: "gradient"}),
}
ACPROP_DEFAULTS = {
    **{"eps": 1e-16, "weight_decouple": True, "fixed_decay": False, "rectify": True},
    "degenerated_to_sgd": True,
}
SGD: dict[str, Name] = {
    **labels("_seed"),
    **{"lr": "learning_rate", "weight_decay": "l2", "dampening": dampening},
    **same("momentum", "nesterov"),
}
NO_MOMENTUM = {"momentum": 0.0}
AVERAGED: dict[str, Name] = {"schedule": None, "ia_start": "start", "ia_every": "period"}
GADAM: dict[str, Name] = {**PLAIN, **DECOUPLED_WD, **same("amsgrad")}
PADAM: dict[str, Name] = {**GADAM, **same("partial")}


def scheduled(case: Case) -> np.ndarray:
    """The learning rate at each step, or one for all where no schedule is told."""
    if "lr" not in case.arrays:
        schedule = case.hyperparameters.get("schedule")
        assert schedule is None, f"{case.label}: the file lacks 'lr', the values of {schedule}"
        return np.full(case.steps, case.hyperparameters["lr"])
    return case.arrays["lr"]


def gadam_row(function: Callable[..., Any], names: Mapping[str, Name], **defaults: Any) -> Row:
    """A row of the code of Gadam, whose learning rate is scheduled."""
    scheduled_names = {**names, "lr": None}
    return Row(function, scheduled_names, {}, defaults, {"learning_rate": scheduled})


def warmed_up(case: Case) -> np.ndarray:
    """The learning rate at each step of a linear warm-up."""
    steps = np.arange(1, case.steps + 1) / max(case.hyperparameters["warmup_steps"], 1)
    return case.hyperparameters["lr"] * np.minimum(steps, 1.0)


FREE: dict[str, Name] = {
    **PLAIN,
    **same("weight_decay"),
    "betas": rates("interpolation", "b2"),
    "r": "step_power",
    "weight_lr_power": "rate_power",
    "silent_sgd_phase": where(below={True: "skip", False: "momentum"}),
}

LION: dict[str, Name] = {**RATE, **same("weight_decay"), "betas": rates("b1", "b2")}
CAUTIOUS_DECAY: dict[str, Name] = {**same("weight_decay"), "cautious_wd": Only((True,))}

ROWS: dict[tuple[str, str], list[Row]] = {
    ("PNM", ""): [Row(aj.pnm, PNM, defaults=ALWAYS)],
    ("AdaPNM", ""): [Row(aj.adapnm, ADAPNM, defaults={"lr": 1e-3, **ALWAYS})],
    ("Adan", ""): [
        Row(
            adan,
            ADAN,
            defaults={"lr": 1e-3, "no_prox": False},
            says="restart_opt()",
            derived=lambda case: {"after": restarts(case), "steps": case.steps},
        ),
        Row(aj.adan, ADAN, defaults={"lr": 1e-3, "no_prox": False}),
    ],
    ("ACProp", ""): [Row(aj.acprop, ACPROP, defaults={"lr": 1e-3, **ACPROP_DEFAULTS})],
    ("diffGrad", ""): [
        Row(
            diffgrad_with_live_buffer,
            {**PLAIN, "weight_decay": "l2"},
            defaults={"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8},
            says="Version 1 of the repository",
        ),
        Row(
            aj.diffgrad,
            {**PLAIN, "weight_decay": "l2", "version": where(variant=VERSIONS)},
            defaults={"lr": 1e-3},
        ),
    ],
    ("GeneralizedSignSGD", ""): [
        Row(
            aj.generalized_signsgd,
            {**PLAIN, "weight_decay": "l2", "use_bias_correction": "corrected"},
            defaults={"lr": 1e-3},
        )
    ],
    ("Lion", ""): [
        Row(aj.lion, {**same("learning_rate", "b1", "b2", "weight_decay"), **labels("_seed")})
    ],
    ("AdamWScheduleFree", ""): [
        Row(
            aj.schedule_free_adamw,
            {**FREE, "lr": None, "warmup_steps": None},
            recorded={"learning_rate": warmed_up},
        )
    ],
    ("RAdamScheduleFree", ""): [Row(aj.schedule_free_radam, FREE)],
    ("C-AdamW", ""): [Row(aj.adamw, {**PLAIN, **same("weight_decay")}, {"cautious": True})],
    ("C-Lion", ""): [
        Row(aj.lion, {**LION, "caution": "cautious"}, has=("caution",)),
        Row(first_cautious_lion, LION),
    ],
    ("AdamW-CWD", ""): [Row(adamw_with_cautious_decay, {**PLAIN, **CAUTIOUS_DECAY})],
    ("Lion-CWD", ""): [Row(lion_with_cautious_decay, {**LION, **CAUTIOUS_DECAY})],
    ("AdamC", ""): [
        Row(
            aj.adamw,
            {**PLAIN, **same("weight_decay"), "max_lr": "base_learning_rate"},
            {"decay": "corrected", "eps_hat": True},
        )
    ],
    ("NAdam", ""): [
        Row(
            aj.nadam,
            {
                **PLAIN,
                **same("momentum_decay"),
                "weight_decay": decay_if("decoupled_weight_decay"),
                "decoupled_weight_decay": None,
            },
            defaults={
                **{"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-8},
                **{"weight_decay": 0.0, "decoupled_weight_decay": False},
            },
        )
    ],
    ("MARS", ""): [
        Row(
            aj.mars,
            {**PLAIN, **same("gamma", "weight_decay", "amsgrad"), "optimize_1d": Only((True,))},
            defaults={"lr": 3e-3, "betas": [0.95, 0.99], "gamma": 0.025},
        )
    ],
    ("LaProp", ""): [
        Row(
            aj.laprop,
            {**PLAIN, **same("amsgrad")},
            defaults={"lr": 4e-4, "betas": [0.9, 0.999], "eps": 1e-15},
        )
    ],
    ("AdEMAMix", ""): [
        Row(
            aj.ademamix,
            {
                **PLAIN,
                **same("alpha", "alpha_warmup", "weight_decay"),
                "betas": rates("b1", "b2", "b3"),
                "beta3_warmup": "b3_warmup",
            },
            defaults={"lr": 1e-3, "betas": [0.9, 0.999, 0.9999], "alpha": 2.0},
        )
    ],
    ("ADOPT", ""): [
        Row(
            aj.adopt,
            {
                **PLAIN,
                "weight_decay": decay_if("decouple"),
                "decouple": None,
                "clip_lambda": where(clip={None: False}),
            },
            defaults={
                **{"lr": 1e-3, "betas": [0.9, 0.9999], "eps": 1e-6},
                **{"weight_decay": 0.0, "decouple": False},
            },
        )
    ],
    ("SGDClipGrad", ""): [
        Row(aj.clipped_sgd, {**SGD, "clipping_param": "max_step"}, defaults=NO_MOMENTUM)
    ],
    ("SGDNormalized", ""): [Row(aj.normalized_sgd, SGD, defaults=NO_MOMENTUM)],
    ("Padam", ""): [gadam_row(aj.padam, PADAM, lr=0.1, **NEVER)],
    ("Gadam", ""): [gadam_row(aj.gadam, GADAM | AVERAGED, lr=1e-3, **NEVER)],
    ("GadamX", ""): [gadam_row(aj.gadamx, PADAM | AVERAGED, lr=0.1, **NEVER)],
    ("SWA", ""): [gadam_row(averaged_sgd, SGD | AVERAGED, lr=1e-3, ia_every=1, **NO_MOMENTUM)],
}
