"""Schedules (1cycle, restarts, WSD, 1 / sqrt, phases), the range test, other batch sizes."""

from adamw_jax.schedules._batch_size import legw, scale_learning_rate
from adamw_jax.schedules._inverse_root import InverseRoot, inverse_root
from adamw_jax.schedules._one_cycle import OneCycle, one_cycle
from adamw_jax.schedules._phases import Phase, Phases, phases
from adamw_jax.schedules._range_test import RangeTest, lr_range_test
from adamw_jax.schedules._theory import theory_decay
from adamw_jax.schedules._transform import scale_by_one_cycle
from adamw_jax.schedules._warm_restarts import WarmRestarts, warm_restarts
from adamw_jax.schedules._wsd import wsd

__all__ = [
    "InverseRoot",
    "OneCycle",
    "Phase",
    "Phases",
    "RangeTest",
    "WarmRestarts",
    "inverse_root",
    "legw",
    "lr_range_test",
    "one_cycle",
    "phases",
    "scale_by_one_cycle",
    "scale_learning_rate",
    "theory_decay",
    "warm_restarts",
    "wsd",
]
