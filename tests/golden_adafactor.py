"""Rows of the golden table for Adafactor."""

from __future__ import annotations

from typing import Any

from adamw_jax.optimizers import adafactor
from tests.golden_cases import Case
from tests.golden_rows import Name, Only, Options, Row, ascent, labels, rates, same

TWO_EPS = rates("eps", "min_scale")


def exponent(value: float, case: Case) -> Options:
    """Some sources write t^decay_rate, with a negative rate."""
    return {"decay_rate": abs(value)}


def external(value: float | None, case: Case) -> Options:
    """optax takes no learning rate for 1, where others take it for the relative step."""
    return {"learning_rate": 1.0 if value is None else value}


SMALL: dict[str, Any] = {"min_dim_size_to_factor": 1}
"""The recorded matrices are small, and factored."""

FAIRSEQ: dict[str, Name] = {
    "lr": "learning_rate",
    "eps": TWO_EPS,
    "decay_rate": exponent,
    "clip_threshold": "clipping_threshold",
    "beta1": "b1",
    "scale_parameter": "multiply_by_parameter_scale",
    **same("weight_decay", "relative_step", "warmup_init"),
}
TORCH: dict[str, Name] = {
    "lr": "learning_rate",
    "beta2_decay": exponent,
    "eps": TWO_EPS,
    "d": "clipping_threshold",
    "weight_decay": "weight_decay",
    "maximize": ascent,
    **labels("foreach"),
}
OPTAX: dict[str, Name] = {
    **same("min_dim_size_to_factor", "multiply_by_parameter_scale", "clipping_threshold"),
    **same("decay_offset", "eps", "factored"),
    "learning_rate": external,
    "decay_rate": exponent,
    "momentum": "b1",
    "dtype_momentum": None,
    "weight_decay_rate": "weight_decay",
    "weight_decay_mask": "mask",
}
KERAS: dict[str, Name] = {
    **dict.fromkeys(("learning_rate", "lr"), "learning_rate"),
    "beta_2_decay": exponent,
    "epsilon_1": "eps",
    "epsilon_2": "min_scale",
    "clip_threshold": "clipping_threshold",
    "relative_step": None,  # the code caps the rate either way
    "weight_decay": Only((None, 0)),  # it decays before the scale of the parameter is measured
    "name": None,
}
CAPPED: dict[str, Any] = {**SMALL, "relative_step": True}
CLAMPED: dict[str, Any] = {**CAPPED, "eps_form": "clamped", "decay": "raw_learning_rate"}

PAPER = [Row(adafactor, FAIRSEQ, SMALL, {"lr": None, "relative_step": True})]
ROWS: dict[tuple[str, str], list[Row]] = {
    ("adafactor", "hf"): PAPER,
    ("adafactor", "fairseq"): PAPER,
    ("adafactor", "torch"): [Row(adafactor, TORCH, CLAMPED, {"lr": 1e-2, "eps": [None, 1e-3]})],
    ("adafactor", "optax"): [
        Row(adafactor, OPTAX, {"axes": "largest", "decay": "fixed"}, {"learning_rate": None})
    ],
    ("adafactor", "keras"): [Row(adafactor, KERAS, CAPPED, {"learning_rate": 1e-3})],
}
