"""The experiments, one claim per file; importing this package finds and registers them all."""

from __future__ import annotations

import importlib
import pkgutil

from adamw_jax.lab.experiments.registry import (
    NETWORK_PRESETS,
    PRESETS,
    Experiment,
    get_experiment,
    list_experiments,
    register,
    settings_hash,
)

for _found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_found}")

DEMO = ("one_cycle", "decoupled_decay", "amsgrad", "radam", "lookahead", "decay_scale", "reddi")
"""Experiments of ``adamw-jax demo``, in this order."""

__all__ = [
    "DEMO",
    "NETWORK_PRESETS",
    "PRESETS",
    "Experiment",
    "get_experiment",
    "list_experiments",
    "register",
    "settings_hash",
]
