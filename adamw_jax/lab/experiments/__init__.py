"""The experiments. Each file is one claim; importing this package enters them all."""

from __future__ import annotations

from adamw_jax.lab.experiments import (
    acprop,
    adafactor,
    adan,
    amsgrad,
    clipping,
    compare,
    decay_scale,
    decoupled_decay,
    diffgrad,
    gadam,
    gradinit,
    koala,
    lookahead,
    lookahead_variance,
    lr_find,
    one_cycle,
    pnm,
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

PAPERS = tuple(
    module.EXPERIMENT.name
    for module in (
        *(acprop, gadam, pnm, diffgrad, adafactor, adan, clipping, koala),
        *(lookahead_variance, gradinit),
    )
)
"""The claims of the other papers, each to be run by its name."""

__all__ = [
    "DEMO",
    "PAPERS",
    "PRESETS",
    "Experiment",
    "compare",
    "get_experiment",
    "list_experiments",
    "lr_find",
    "register",
    "settings_hash",
]
