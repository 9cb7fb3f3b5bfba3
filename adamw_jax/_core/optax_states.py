"""A table of the states of optax and the meaning of their fields, the only such table.

Classes of this library declare the same facts in class attributes: ``nonnegative``, ``exact``,
``momenta``, ``restarts``, and ``twins`` for the fields of optax with the same meaning.

>>> import optax
>>> fields_of(optax.ScaleByAdamState).momentum
'mu'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import numerics

Evaluate = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of a leaf of the weights in the state and of the parameter."""


class Fields(NamedTuple):
    """The fields of a state of optax.

    Attributes:
      momentum: the field with the first moment, or empty.
      second: the field with a second moment that a recipe of this library can continue, or empty.
      maximum: the field with AMSGrad's maximum, or empty.
      nonnegative: fields that are never negative.
      exact: fields that must not be encoded: parameters, arrays to which small terms are added or
        of which a difference is taken, and arrays that optax reads from the state.
      restarts: whether the state consists of moments and their count alone.
      schedules: whether its ``count`` is that of schedules.
      wraps: whether a recipe can ignore the state, apart from the states inside it.
      eval_params: for a state with other weights than the parameters, a function of the state as
        the method ``eval_params`` of a class of this library (see there); it returns None if this
        state has none.
    """

    momentum: str = ""
    second: str = ""
    maximum: str = ""
    nonnegative: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    restarts: bool = False
    schedules: bool = False
    wraps: bool = False
    eval_params: Callable[[Any], tuple[Any, Evaluate] | None] | None = None


def _of_schedule_free(state: Any) -> tuple[Any, Evaluate]:
    """Return z, and x = (y - (1 - b1) z) / b1, where y are the parameters."""

    def evaluate(z: jax.Array, y: jax.Array) -> jax.Array:
        z, y = numerics.widen(z), numerics.widen(y)
        b1 = numerics.broadcastable(state.b1, y).astype(y.dtype)
        return (y - (1 - b1) * z) / b1

    return state.z, evaluate


def _of_sam(state: Any) -> tuple[Any, Evaluate] | None:
    """Return the weights before the adversarial steps, the parameters if there was none."""

    def evaluate(cached: jax.Array, adversarial: jax.Array) -> jax.Array:
        synced = numerics.broadcastable(state.steps_since_sync, cached) == 0
        return jnp.where(synced, adversarial, cached)

    return None if state.cache is None else (state.cache, evaluate)


def _moments(**fields: Any) -> Fields:
    return Fields(**fields, restarts=True)


_SCHEDULE = Fields(schedules=True, wraps=True)
_WRAPPER = Fields(wraps=True)

TABLE = {
    "AccumulateAvgUpdatesState": Fields(exact=("avg_grad",)),
    "ApplyEvery": Fields(exact=("grad_acc",)),
    "ApplyIfFiniteState": _WRAPPER,
    "COCOBState": Fields(
        nonnegative=("scale", "subgradients"),
        exact=("init_particles", "cumulative_gradients", "reward"),
    ),
    "DAdaptAdamWState": Fields(nonnegative=("exp_avg_sq",)),
    "DoGState": Fields(exact=("init_params",)),
    "DoWGState": Fields(exact=("init_params",)),
    "EmaState": _moments(),
    "FactoredState": _moments(nonnegative=("v_row", "v_col", "v")),
    "InjectHyperparamsState": _SCHEDULE,
    "InjectStatefulHyperparamsState": _SCHEDULE,
    "MadgradState": Fields(nonnegative=("grad_sum_sq",), exact=("x0",)),
    "MaskedState": _WRAPPER,
    "MechanicState": Fields(exact=("x0",)),
    "MomoAdamState": Fields(nonnegative=("exp_avg_sq",)),
    "MonitorState": Fields(exact=("measurements", "measure_states")),
    "MultiStepsState": Fields(exact=("acc_grads",)),
    "MuonState": _moments(),
    "PartitionState": _WRAPPER,
    "PerElementMeanAndSumSqDiffGradsState": Fields(exact=("mean_grads", "sum_sq_diff_grads")),
    "PerElementMeanAndVarianceEMAState": Fields(nonnegative=("variance_grads_ema",)),
    "ProdigyState": Fields(nonnegative=("exp_avg_sq",), exact=("params0",)),
    "SAMState": Fields(exact=("cache",), eval_params=_of_sam),
    "ScaleByAdaDeltaState": _moments(nonnegative=("e_g", "e_x")),
    "ScaleByAdamState": _moments(momentum="mu", second="nu", nonnegative=("nu",)),
    "ScaleByAdanState": _moments(nonnegative=("n",)),
    "ScaleByAdemamixState": _moments(nonnegative=("nu",)),
    "ScaleByAmsgradState": _moments(
        momentum="mu", second="nu", maximum="nu_max", nonnegative=("nu", "nu_max")
    ),
    "ScaleByBacktrackingLinesearchState": Fields(exact=("grad",)),
    "ScaleByBeliefState": _moments(momentum="mu", second="nu", nonnegative=("nu",)),
    "ScaleByDistanceOverGradientsState": Fields(exact=("init_params",)),
    "ScaleByLBFGSState": Fields(exact=("params", "updates")),
    "ScaleByLionState": _moments(momentum="mu"),
    "ScaleByNovogradState": _moments(nonnegative=("nu",)),
    "ScaleByRStdDevState": _moments(nonnegative=("nu",)),
    "ScaleByRStdDevWithCountState": _moments(nonnegative=("nu",)),
    "ScaleByRmsState": _moments(nonnegative=("nu",)),
    "ScaleByRmsWithCountState": _moments(nonnegative=("nu",)),
    "ScaleByRpropState": _moments(nonnegative=("step_sizes",)),
    "ScaleByRssState": _moments(nonnegative=("sum_of_squares",)),
    "ScaleBySM3State": _moments(nonnegative=("mu",)),  # its nu is the momentum
    "ScaleByScheduleState": _SCHEDULE,
    "ScaleBySimplifiedAdEMAMixState": _moments(nonnegative=("n",)),
    "ScaleByZoomLinesearchState": Fields(exact=("grad",)),
    "ScheduleFreeState": Fields(exact=("z",), eval_params=_of_schedule_free),
    "SnapshotState": Fields(exact=("measurement",)),
    "SophiaState": _moments(),
    "TraceState": _moments(momentum="trace"),
    "WrappedScheduleState": _SCHEDULE,
}
"""Rows by class name, since some classes are not public in optax."""


def fields_of(kind: type) -> Fields | None:
    """Return the row of a class of optax, empty if not in the table; None for other classes."""
    if kind.__module__.partition(".")[0] != "optax":
        return None
    return TABLE.get(kind.__name__, Fields())
