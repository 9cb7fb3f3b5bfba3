"""The experiments, one claim per file; importing this package registers them all."""

from __future__ import annotations

from adamw_jax.lab.experiments import (
    acprop,
    adafactor,
    adan,
    amsgrad,
    batch_size_rules,
    clipping,
    compare,
    decay_scale,
    decoupled_decay,
    diffgrad,
    edge_of_stability,
    gadam,
    gradinit,
    invariant_measures,
    koala,
    layer_norm_scaling,
    layer_norm_warmup,
    local_geometry,
    lookahead,
    lookahead_variance,
    lr_find,
    moment_estimation,
    one_cycle,
    pnm,
    radam,
    reddi,
    small_state,
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
"""Experiments of ``adamw-jax demo``, in this order."""

PAPERS = tuple(
    module.EXPERIMENT.name
    for module in (
        *(acprop, gadam, pnm, diffgrad, adafactor, adan, clipping, koala),
        lookahead_variance,
    )
)
"""Claims of papers on other optimizers; run them by name."""

ANALYSES = tuple(
    module.EXPERIMENT.name
    for module in (
        *(small_state, gradinit, edge_of_stability, local_geometry, invariant_measures),
        *(batch_size_rules, moment_estimation, layer_norm_scaling, layer_norm_warmup),
    )
)
"""Small state, initialisation and analyses of training; run them by name."""

__all__ = [
    "ANALYSES",
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
