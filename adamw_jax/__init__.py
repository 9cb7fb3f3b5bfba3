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
