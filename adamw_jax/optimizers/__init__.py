"""The catalogue: named optimizers, each a list of stages with its equation and citation."""

from adamw_jax.optimizers.acprop import acprop
from adamw_jax.optimizers.adabelief import adabelief
from adamw_jax.optimizers.adafactor import adafactor
from adamw_jax.optimizers.adam import adam, adamw
from adamw_jax.optimizers.adamax import adamax
from adamw_jax.optimizers.adan import adan
from adamw_jax.optimizers.amsgrad import amsgrad
from adamw_jax.optimizers.clipped_sgd import clipped_sgd, normalized_sgd
from adamw_jax.optimizers.diffgrad import diffgrad
from adamw_jax.optimizers.gadam import gadam, gadamx
from adamw_jax.optimizers.koala import koala_m, koala_v
from adamw_jax.optimizers.lamb import lamb
from adamw_jax.optimizers.lars import lars
from adamw_jax.optimizers.norm_adaptive_sgd import norm_adaptive_sgd
from adamw_jax.optimizers.padam import padam
from adamw_jax.optimizers.pnm import adapnm, pnm
from adamw_jax.optimizers.radam import radam
from adamw_jax.optimizers.registry import OptimizerInfo, create, info, list_optimizers
from adamw_jax.optimizers.sgdw import sgdw
from adamw_jax.optimizers.signsgd import generalized_signsgd

# What is registered above has its direction below.
# isort: split
from adamw_jax.optimizers.directions import (
    scale_by_acprop,
    scale_by_adabelief,
    scale_by_adafactor,
    scale_by_adam,
    scale_by_adamax,
    scale_by_adamw,
    scale_by_adan,
    scale_by_adapnm,
    scale_by_amsgrad,
    scale_by_diffgrad,
    scale_by_gadam,
    scale_by_gadamx,
    scale_by_generalized_signsgd,
    scale_by_koala_v,
    scale_by_lamb,
    scale_by_norm_adaptive_sgd,
    scale_by_normalized_sgd,
    scale_by_padam,
    scale_by_pnm,
    scale_by_radam,
    scale_by_sgdw,
)

__all__ = [
    "adafactor",
    "scale_by_adafactor",
    "koala_m",
    "koala_v",
    "scale_by_koala_v",
    "lamb",
    "scale_by_lamb",
    "lars",
    "norm_adaptive_sgd",
    "scale_by_norm_adaptive_sgd",
    "gadam",
    "gadamx",
    "scale_by_gadam",
    "scale_by_gadamx",
    "acprop",
    "scale_by_acprop",
    "adan",
    "scale_by_adan",
    "clipped_sgd",
    "normalized_sgd",
    "scale_by_normalized_sgd",
    "diffgrad",
    "scale_by_diffgrad",
    "padam",
    "scale_by_padam",
    "adapnm",
    "pnm",
    "scale_by_adapnm",
    "scale_by_pnm",
    "generalized_signsgd",
    "scale_by_generalized_signsgd",
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
