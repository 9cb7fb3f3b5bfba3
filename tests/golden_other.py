"""Rows of the golden table for the optimizers beyond the Adam family: set b, the authors' code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import adamw_jax as aj
from adamw_jax.moments import Moments
from adamw_jax.stage import Kind, Step, stage
from tests.golden_cases import Case
from tests.golden_rows import Name, Options, Row, Translation, betas

LABEL: dict[str, Name] = {"_seed": None, "foreach": None}
PLAIN: dict[str, Name] = {
    **LABEL,
    "lr": "learning_rate",
    "eps": "eps",
    "betas": betas,
    "amsgrad": "amsgrad",
}
RECORDED = {"learning_rate": "lr"}
AVERAGED: dict[str, Name] = {
    **PLAIN,
    "lr": None,
    "schedule": None,
    "partial": "partial",
    "ia_start": "start",
    "ia_every": "period",
}


def rates(*names: str) -> Translation:
    """A tuple of decay rates under these names."""
    return lambda value, case: dict(zip(names, value, strict=True))


def decay_unless(flag: str, decay: str = "weight_decay", otherwise: str = "l2") -> Translation:
    """The coefficient as decoupled decay, unless the flag of the case says False."""

    def translate(value: float, case: Case) -> Options:
        return {decay if case.hyperparameters.get(flag, True) else otherwise: value}

    return translate


def acprop_decay(value: float, case: Case) -> Options:
    fixed = {"decay": "fixed"} if case.hyperparameters.get("fixed_decay") else {}
    decoupled = case.hyperparameters.get("weight_decouple", True)
    return {"weight_decay": value, **fixed} if decoupled else {"l2": value}


def degenerated(value: bool, case: Case) -> Options:
    return {"below": "momentum" if value else "decay"}


def numerator(value: bool, case: Case) -> Options:
    return {"numerator": "momentum" if value else "gradient"}


def no_prox(value: bool, case: Case) -> Options:
    return {"decay": "learning_rate" if value else "proximal"}


def version(value: int, case: Case) -> Options:
    return {"variant": {0: "abs", 1: "signed", 2: "wide"}[value]}


def diffgrad_with_live_buffer(learning_rate: float, b1: float, b2: float, eps: float) -> Any:
    """The authors' first version: the previous gradient *is* the gradient from step 2 on."""

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        def factor(g: jax.Array) -> jax.Array:
            return lax.logistic(lax.select(step.count == 0, lax.abs(g), jnp.zeros_like(g)))

        return record.scaled(jax.tree.map(factor, record.gradient)), state

    return aj.compose(
        aj.estimate_moments(aj.ema(b1), aj.ema_of_squares(b2)),
        stage("live_buffer", Kind.MOMENTS, Kind.MOMENTS, apply),
        aj.correct_bias(),
        aj.precondition(eps, eps_hat=True),
        aj.scale_by_learning_rate(learning_rate),
    )


def averaged_sgd(start: int, period: int, **options: Any) -> Any:
    """SWA: SGD with momentum, and the equal-weight average of its iterates."""
    return aj.compose(aj.sgdw(**options), aj.average_iterates(start=start, period=period))


PNM_DECAY = {"weight_decay": decay_unless("decoupled"), "decoupled": None}
ADAN: dict[str, Name] = {
    **PLAIN,
    "betas": rates("b1", "b2", "b3"),
    "weight_decay": "weight_decay",
    "no_prox": no_prox,
    "max_grad_norm": "max_grad_norm",
}
ACPROP: dict[str, Name] = {
    **PLAIN,
    **dict.fromkeys(("weight_decouple", "fixed_decay")),
    "weight_decay": acprop_decay,
    "rectify": "rectify",
    "degenerated_to_sgd": degenerated,
    "momentum_update": numerator,
}
CLIPPED: dict[str, Name] = {
    **LABEL,
    "lr": "learning_rate",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "dampening": "dampening",
    "weight_decay": "l2",
    "clipping_param": "max_step",
}
DECOUPLED: dict[str, Name] = {"weight_decay": decay_unless("decoupled_wd"), "decoupled_wd": None}

ROWS: dict[tuple[str, str], list[Row]] = {
    ("PNM", ""): [Row(aj.pnm, {**PLAIN, **PNM_DECAY, "betas": rates("b1", "b0")})],
    ("AdaPNM", ""): [Row(aj.adapnm, {**PLAIN, **PNM_DECAY, "betas": rates("b1", "b2", "b0")})],
    ("Adan", ""): [
        Row(aj.adan, ADAN, {"restart_period": 20}, says="restart_opt() is called once"),
        Row(aj.adan, ADAN),
    ],
    ("ACProp", ""): [
        Row(aj.acprop, ACPROP, {"rectify": True}, says="constructor defaults"),
        Row(aj.acprop, ACPROP),
    ],
    ("diffGrad", ""): [
        Row(diffgrad_with_live_buffer, PLAIN, says="Version 1 of the repository"),
        Row(aj.diffgrad, {**PLAIN, "weight_decay": "l2", "version": version}),
    ],
    ("GeneralizedSignSGD", ""): [
        Row(
            aj.generalized_signsgd,
            {**PLAIN, "weight_decay": "l2", "use_bias_correction": "corrected"},
        )
    ],
    ("SGDClipGrad", ""): [Row(aj.clipped_sgd, CLIPPED)],
    ("SGDNormalized", ""): [Row(aj.normalized_sgd, CLIPPED)],
    ("Padam", ""): [
        Row(aj.padam, {**PLAIN, **DECOUPLED, "lr": None, "partial": "partial"}, {}, RECORDED)
    ],
    ("Gadam", ""): [Row(aj.gadam, {**AVERAGED, **DECOUPLED}, {}, RECORDED)],
    ("GadamX", ""): [Row(aj.gadamx, {**AVERAGED, **DECOUPLED}, {}, RECORDED)],
    ("SWA", ""): [
        Row(
            averaged_sgd,
            {**AVERAGED, "momentum": "momentum", "weight_decay": "l2"},
            {},
            RECORDED,
        )
    ],
}
