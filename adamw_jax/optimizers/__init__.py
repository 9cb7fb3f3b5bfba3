"""The catalogue: named optimizers, each a list of stages with equation and citation."""

# Made by tools/optimizer_exports.py.
from adamw_jax.optimizers._acprop import acprop
from adamw_jax.optimizers._adabelief import adabelief
from adamw_jax.optimizers._adafactor import adafactor
from adamw_jax.optimizers._adam import adam, adamw
from adamw_jax.optimizers._adamax import adamax
from adamw_jax.optimizers._adan import adan
from adamw_jax.optimizers._ademamix import ademamix
from adamw_jax.optimizers._adopt import adopt
from adamw_jax.optimizers._amsgrad import amsgrad
from adamw_jax.optimizers._clipped_sgd import clipped_sgd, normalized_sgd
from adamw_jax.optimizers._diffgrad import diffgrad
from adamw_jax.optimizers._gadam import gadam, gadamx
from adamw_jax.optimizers._generalized_signsgd import generalized_signsgd
from adamw_jax.optimizers._koala import koala_m, koala_v
from adamw_jax.optimizers._lamb import lamb
from adamw_jax.optimizers._laprop import laprop
from adamw_jax.optimizers._lars import lars
from adamw_jax.optimizers._lion import lion
from adamw_jax.optimizers._mars import mars
from adamw_jax.optimizers._nadam import nadam
from adamw_jax.optimizers._norm_adaptive_sgd import norm_adaptive_sgd
from adamw_jax.optimizers._padam import padam
from adamw_jax.optimizers._pnm import adapnm, pnm
from adamw_jax.optimizers._radam import radam
from adamw_jax.optimizers._registry import OptimizerInfo, create, info, list_optimizers
from adamw_jax.optimizers._schedule_free import schedule_free_adamw, schedule_free_radam
from adamw_jax.optimizers._sgdw import sgdw

# What is registered above has its direction below.
# isort: split
from adamw_jax.optimizers._directions import *

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
    "ademamix",
    "adopt",
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
    "laprop",
    "lars",
    "lion",
    "list_optimizers",
    "mars",
    "nadam",
    "norm_adaptive_sgd",
    "normalized_sgd",
    "padam",
    "pnm",
    "radam",
    "schedule_free_adamw",
    "schedule_free_radam",
    "sgdw",
]
