"""The experiments. Each file is one claim; importing this package enters them all."""

from __future__ import annotations

from adamw_jax.lab.experiments import (
    amsgrad,
    compare,
    decay_scale,
    decoupled_decay,
    lookahead,
    lr_find,
    one_cycle,
    radam,
    reddi,
)
from adamw_jax.lab.experiments.registry import (
    PRESETS,
    Experiment,
    get_experiment,
    list_experiments,
    register,
    settings_hash,
)

DEMO = tuple(
    module.EXPERIMENT.name
    for module in (one_cycle, decoupled_decay, amsgrad, radam, lookahead, decay_scale, reddi)
)
"""What ``adamw-jax demo`` runs, in this order."""

__all__ = [
    "DEMO",
    "PRESETS",
    "Experiment",
    "compare",
    "get_experiment",
    "list_experiments",
    "lr_find",
    "register",
    "settings_hash",
]
