"""Stages that change the direction: decay, cautious updates, trust ratios, rules by name."""

from adamw_jax.direction._cautious import cautious
from adamw_jax.direction._clip_by_rms import clip_by_rms
from adamw_jax.direction._decay import decoupled_decay, normalized_decay
from adamw_jax.direction._layer_rates import discriminative_rates, layer_decay
from adamw_jax.direction._mup import mup
from adamw_jax.direction._parameter_rms import scale_by_parameter_rms
from adamw_jax.direction._rule import LeafRules, Rule
from adamw_jax.direction._rules import ParameterRules, parameter_rules
from adamw_jax.direction._trust_ratio import scale_by_trust_ratio

__all__ = [
    "LeafRules",
    "ParameterRules",
    "Rule",
    "cautious",
    "clip_by_rms",
    "decoupled_decay",
    "discriminative_rates",
    "layer_decay",
    "mup",
    "normalized_decay",
    "parameter_rules",
    "scale_by_parameter_rms",
    "scale_by_trust_ratio",
]
