"""draft"""

from __future__ import annotations

import functools
import inspect
import importlib.util
import os
import sys
from typing import Any

import optax

import adamw_jax
from adamw_jax import adafactor, adam, adamax, adamw, sgdw

CHOSEN = "ADAMW_JAX_SUITE_UNDER_TEST"


def sgd(learning_rate: Any, momentum: Any = None, nesterov: bool = False) -> Any:
    return sgdw(learning_rate, momentum, nesterov=nesterov)


def adamaxw(*args: Any, weight_decay: Any = 1e-4, **kwargs: Any) -> Any:
    return adamax(*args, weight_decay=weight_decay, **kwargs)

OURS = {
    **{
        name: getattr(adamw_jax, name)
        for name in ("adabelief", "adafactor", "adam", "adamax", "adamw", "adan", "amsgrad")
        + ("lamb", "lars", "radam")
    },
    "sgd": sgd,
    "nadam": functools.partial(adam, nesterov=True),
    "nadamw": functools.partial(adamw, nesterov=True),
    "adamaxw": adamaxw,
}
DIRECTIONS = {
    "scale_by_belief": adamw_jax.scale_by_adabelief,
    **{n: getattr(adamw_jax, n) for n in ("scale_by_adam", "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad", "scale_by_radam")},
}

def pytest_configure(config: Any) -> None:
    if CHOSEN not in os.environ:
        return
    from optax._src import alias, transform
    import optax.contrib
    for module, names in ((alias, OURS), (transform, DIRECTIONS), (optax, OURS | DIRECTIONS)):
        for name, ours in names.items():
            assert hasattr(module, name), name
            setattr(module, name, ours)
    optax.contrib.acprop = adamw_jax.acprop
    optax.contrib.scale_by_acprop = adamw_jax.scale_by_acprop
