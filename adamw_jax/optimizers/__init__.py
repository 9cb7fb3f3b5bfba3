"""The catalogue: named optimizers, each a list of stages with its equation and citation."""

from adamw_jax.optimizers.adabelief import adabelief, scale_by_adabelief
from adamw_jax.optimizers.adam import adam, adamw, scale_by_adam, scale_by_adamw
from adamw_jax.optimizers.adamax import adamax, scale_by_adamax
from adamw_jax.optimizers.amsgrad import amsgrad, scale_by_amsgrad
from adamw_jax.optimizers.radam import radam, scale_by_radam
from adamw_jax.optimizers.registry import OptimizerInfo, create, info, list_optimizers
from adamw_jax.optimizers.sgdw import scale_by_sgdw, sgdw

__all__ = [
    "OptimizerInfo",
    "adabelief",
    "adam",
    "adamax",
    "adamw",
    "amsgrad",
    "create",
    "info",
    "list_optimizers",
    "radam",
    "scale_by_adabelief",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamw",
    "scale_by_amsgrad",
    "scale_by_radam",
    "scale_by_sgdw",
    "sgdw",
]
