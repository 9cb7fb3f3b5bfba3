"""adamw_jax: the ideas of the adaptive-gradient literature as composable optax transformations."""

from adamw_jax.averaging import LookaheadState, eval_params, lookahead
from adamw_jax.compose import Composed, compose
from adamw_jax.decay import decoupled_decay, l2_decay, normalized_decay
from adamw_jax.interop import from_optax, to_optax
from adamw_jax.learning_rate import scale_by_learning_rate
from adamw_jax.live import clear_hyperparams, hyperparams, set_hyperparams
from adamw_jax.masks import except_named, matrices_only
from adamw_jax.migrate import MigrationReport, migrate_state
from adamw_jax.moments import (
    Moments,
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_centered_squares,
    ema_of_squares,
    estimate_moments,
    heavy_ball,
    infinity_norm,
    nesterov,
    no_moment,
    precondition,
    rectify_variance,
)
from adamw_jax.only import only
from adamw_jax.optimizers import (
    OptimizerInfo,
    adabelief,
    adam,
    adamax,
    adamw,
    amsgrad,
    create,
    info,
    list_optimizers,
    radam,
    scale_by_adabelief,
    scale_by_adam,
    scale_by_adamax,
    scale_by_adamw,
    scale_by_amsgrad,
    scale_by_radam,
    scale_by_sgdw,
    sgdw,
)
from adamw_jax.overview import summary
from adamw_jax.rules import ParameterRules, Rule, parameter_rules
from adamw_jax.schedules import (
    OneCycle,
    Phase,
    Phases,
    RangeTest,
    WarmRestarts,
    lr_range_test,
    one_cycle,
    phases,
    scale_by_one_cycle,
    theory_decay,
    warm_restarts,
)
from adamw_jax.state import ComposeState

__all__ = [  # grouped as the README groups them
    # The catalogue
    "adabelief",
    "adam",
    "adamax",
    "adamw",
    "amsgrad",
    "radam",
    "sgdw",
    "create",
    "info",
    "list_optimizers",
    "OptimizerInfo",
    # Their directions: gradient in, direction out
    "scale_by_adabelief",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamw",
    "scale_by_amsgrad",
    "scale_by_radam",
    "scale_by_sgdw",
    # The pipe: recipes, stages, parts
    "compose",
    "only",
    "summary",
    "estimate_moments",
    "ema",
    "ema_of_squares",
    "ema_of_centered_squares",
    "heavy_ball",
    "infinity_norm",
    "no_moment",
    "amsgrad_max",
    "nesterov",
    "correct_bias",
    "rectify_variance",
    "precondition",
    "scale_by_learning_rate",
    "Composed",
    "ComposeState",
    "Moments",
    # Decay, masks and rules by name
    "decoupled_decay",
    "l2_decay",
    "normalized_decay",
    "except_named",
    "matrices_only",
    "parameter_rules",
    "ParameterRules",
    "Rule",
    # Schedules
    "one_cycle",
    "scale_by_one_cycle",
    "warm_restarts",
    "phases",
    "lr_range_test",
    "theory_decay",
    "OneCycle",
    "Phase",
    "Phases",
    "RangeTest",
    "WarmRestarts",
    # Averaging
    "lookahead",
    "eval_params",
    "LookaheadState",
    # The state: live hyperparameters, migration, optax
    "hyperparams",
    "set_hyperparams",
    "clear_hyperparams",
    "migrate_state",
    "MigrationReport",
    "from_optax",
    "to_optax",
]
