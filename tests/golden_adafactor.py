"""Rows of the golden table for Adafactor: set a."""

from __future__ import annotations

from typing import Any

from adamw_jax.optimizers.adafactor import adafactor
from tests.golden_cases import Case
from tests.golden_rows import Name, Options, Row


def two_eps(value: list[float | None], case: Case) -> Options:
    return dict(zip(("eps", "min_scale"), value, strict=True))


def exponent(value: float, case: Case) -> Options:
    """The sources write t^decay_rate, with a negative rate."""
    return {"decay_rate": -value}


SMALL: dict[str, Any] = {"min_dim_size_to_factor": 1}
"""The recorded matrices are small, and factored."""

FAIRSEQ: dict[str, Name] = {
    "lr": "learning_rate",
    "eps": two_eps,
    "decay_rate": exponent,
    "clip_threshold": "clipping_threshold",
    "beta1": "b1",
    "weight_decay": "weight_decay",
    "scale_parameter": "multiply_by_parameter_scale",
    "relative_step": "relative_step",
    "warmup_init": "warmup_init",
}
TORCH: dict[str, Name] = {
    "lr": "learning_rate",
    "beta2_decay": exponent,
    "eps": two_eps,
    "d": "clipping_threshold",
    "weight_decay": "weight_decay",
}
OPTAX: dict[str, Name] = {
    **{
        name: name
        for name in (
            "learning_rate",
            "min_dim_size_to_factor",
            "multiply_by_parameter_scale",
            "clipping_threshold",
            "factored",
        )
    },
    "momentum": "b1",
    "weight_decay_rate": "weight_decay",
}
CAPPED: dict[str, Any] = {**SMALL, "relative_step": True}

ROWS: dict[tuple[str, str], list[Row]] = {
    ("adafactor", "hf"): [Row(adafactor, FAIRSEQ, SMALL)],
    ("adafactor", "fairseq"): [Row(adafactor, FAIRSEQ, SMALL)],
    ("adafactor", "torch"): [
        Row(
            adafactor,
            TORCH,
            {**CAPPED, "eps_form": "clamped", "decay": "raw_learning_rate"},
        )
    ],
    ("adafactor", "optax"): [Row(adafactor, OPTAX, {"axes": "largest", "decay": "fixed"})],
    ("adafactor", "keras"): [Row(adafactor, {"learning_rate": "learning_rate"}, CAPPED)],
}
