"""Functions on states: hyperparameters, checkpoints, migration, optax, shardings, summary."""

from adamw_jax._core.state import ComposeState
from adamw_jax.state._checkpoints import Checkpoint, restore_checkpoint, save_checkpoint
from adamw_jax.state._hyperparams import clear_hyperparams, hyperparams, set_hyperparams
from adamw_jax.state._migrate import MigrationReport, migrate_state
from adamw_jax.state._optax import from_optax, to_optax
from adamw_jax.state._preemption import PREEMPTED, save_on_sigterm
from adamw_jax.state._shardings import state_shardings
from adamw_jax.state._summary import summary
from adamw_jax.state._torch import from_torch

__all__ = [
    "PREEMPTED",
    "Checkpoint",
    "ComposeState",
    "MigrationReport",
    "clear_hyperparams",
    "from_optax",
    "from_torch",
    "hyperparams",
    "migrate_state",
    "restore_checkpoint",
    "save_checkpoint",
    "save_on_sigterm",
    "set_hyperparams",
    "state_shardings",
    "summary",
    "to_optax",
]
