"""The catalogue of named optimizers, each a list of stages with its equation and citation."""

from adamw_jax.optimizers._acprop import acprop
from adamw_jax.optimizers._adabelief import adabelief
from adamw_jax.optimizers._adafactor import adafactor
from adamw_jax.optimizers._adam import adam, adamw
from adamw_jax.optimizers._adamax import adamax
from adamw_jax.optimizers._adan import adan
from adamw_jax.optimizers._amsgrad import amsgrad
from adamw_jax.optimizers._clipped_sgd import clipped_sgd, normalized_sgd
from adamw_jax.optimizers._diffgrad import diffgrad
from adamw_jax.optimizers._gadam import gadam, gadamx
from adamw_jax.optimizers._generalized_signsgd import generalized_signsgd
from adamw_jax.optimizers._koala import koala_m, koala_v
from adamw_jax.optimizers._lamb import lamb
from adamw_jax.optimizers._lars import lars
from adamw_jax.optimizers._norm_adaptive_sgd import norm_adaptive_sgd
from adamw_jax.optimizers._padam import padam
from adamw_jax.optimizers._pnm import adapnm, pnm
from adamw_jax.optimizers._radam import radam
from adamw_jax.optimizers._registry import OptimizerInfo, create, info, list_optimizers
from adamw_jax.optimizers._sgdw import sgdw

# Imported after all optimizers are registered.
# isort: split
from adamw_jax.optimizers._directions import (
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
    "OptimizerInfo",
    "acprop",
    "adabelief",
    "adafactor",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adapnm",
    "amsgrad",
    "clipped_sgd",
    "create",
    "diffgrad",
    "gadam",
    "gadamx",
    "generalized_signsgd",
    "info",
    "koala_m",
    "koala_v",
    "lamb",
    "lars",
    "list_optimizers",
    "norm_adaptive_sgd",
    "normalized_sgd",
    "padam",
    "pnm",
    "radam",
    "scale_by_acprop",
    "scale_by_adabelief",
    "scale_by_adafactor",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamw",
    "scale_by_adan",
    "scale_by_adapnm",
    "scale_by_amsgrad",
    "scale_by_diffgrad",
    "scale_by_gadam",
    "scale_by_gadamx",
    "scale_by_generalized_signsgd",
    "scale_by_koala_v",
    "scale_by_lamb",
    "scale_by_norm_adaptive_sgd",
    "scale_by_normalized_sgd",
    "scale_by_padam",
    "scale_by_pnm",
    "scale_by_radam",
    "scale_by_sgdw",
    "sgdw",
]
