"""adamw_jax: the ideas of the adaptive-gradient literature as composable optax transformations.

``__all__`` has what most programs need. Everything else is in its room, named for what flows
through it: ``adamw_jax.moments.nesterov``. Names of the rooms below can be imported from here, too.
"""

from adamw_jax import (
    communication,
    curvature,
    diagnostics,
    direction,
    extend,
    gradient,
    initialization,
    moments,
    optimizers,
    packing,
    schedules,
    state,
    storage,
    update,
)
from adamw_jax._core.compose import Composed as Composed, compose
from adamw_jax._core.foreign import as_direction, as_optimizer
from adamw_jax._core.masks import except_named, kernels_only, matrices_only
from adamw_jax._core.only import only
from adamw_jax.diagnostics import probe, read_probe
from adamw_jax.direction import *
from adamw_jax.gradient import *
from adamw_jax.initialization import *
from adamw_jax.moments import *
from adamw_jax.optimizers import *
from adamw_jax.optimizers._directions import *
from adamw_jax.optimizers._registry import did_you_mean_optimizer
from adamw_jax.packing import *
from adamw_jax.schedules import *
from adamw_jax.state import *
from adamw_jax.storage import quantize_state
from adamw_jax.update import *

__all__ = [
    # Recipes
    "compose",
    "as_direction",
    "as_optimizer",
    "only",
    "summary",
    "estimate_moments",
    "ema",
    "ema_of_squares",
    "correct_bias",
    "precondition",
    "clip_gradient",
    "decoupled_decay",
    "l2_decay",
    "scale_by_learning_rate",
    # Masks and rules by name
    "except_named",
    "kernels_only",
    "matrices_only",
    "parameter_rules",
    "Rule",
    # Schedules
    "one_cycle",
    "warm_restarts",
    "phases",
    "Phase",
    "lr_range_test",
    # Averages of weights
    "lookahead",
    "average_iterates",
    "eval_params",
    # Robust steps
    "skip_bad_steps",
    "accumulate",
    # The state
    "hyperparams",
    "set_hyperparams",
    "clear_hyperparams",
    "migrate_state",
    "from_optax",
    "from_torch",
    "to_optax",
    "state_shardings",
    "quantize_state",
    "pack_small_leaves",
    # Measuring and starting
    "probe",
    "read_probe",
    "gradinit",
    # Rooms
    "communication",
    "curvature",
    "diagnostics",
    "direction",
    "extend",
    "gradient",
    "initialization",
    "moments",
    "optimizers",
    "packing",
    "schedules",
    "state",
    "storage",
    "update",
]
__all__ += optimizers.__all__


__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Hint at the nearest name, sgdw for sgd, or at optax, which has muon."""
    hint = "" if name.startswith("_") else did_you_mean_optimizer(name, __all__)
    raise AttributeError(f"module 'adamw_jax' has no attribute {name!r}{hint}")
