"""What the arrays of a state are: never negative, of either sign, or not to become codes at all.

A state class says so itself, in class attributes that name its fields, one or a tuple of them::

    class MaximumState(NamedTuple):
        maximum: Tree
        nonnegative = ("maximum",)  # takes the map without a sign

    class LookaheadState(NamedTuple):
        slow: Tree
        exact = ("slow",)  # parameters, or what small terms are added to: codes would lose those

For the states of optax one table says it. Names that a user chose (a label of ``optax.partition``,
an entry of ``named_chain``, a stage of ``compose``) are keys of mappings, no fields, and say
nothing.

>>> import jax, optax
>>> state = optax.adam(1e-3).init({"nu": 0.0})
>>> [role_of(state, path) for path, _ in jax.tree_util.tree_leaves_with_path(state)][1:]
['signed', 'nonnegative']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.tree_util import DictKey, GetAttrKey, SequenceKey

NONNEGATIVE, SIGNED, EXACT = "nonnegative", "signed", "exact"

OPTAX: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "AccumulateAvgUpdatesState": {EXACT: ("avg_grad",)},
    "ApplyEvery": {EXACT: ("grad_acc",)},
    "COCOBState": {
        NONNEGATIVE: ("scale", "subgradients"),
        EXACT: ("init_particles", "cumulative_gradients", "reward"),
    },
    "DAdaptAdamWState": {NONNEGATIVE: ("exp_avg_sq",)},
    "DoGState": {EXACT: ("init_params",)},
    "DoWGState": {EXACT: ("init_params",)},
    "FactoredState": {NONNEGATIVE: ("v_row", "v_col", "v")},
    "MadgradState": {NONNEGATIVE: ("grad_sum_sq",), EXACT: ("x0",)},
    "MechanicState": {EXACT: ("x0",)},
    "MomoAdamState": {NONNEGATIVE: ("exp_avg_sq",)},
    "MonitorState": {EXACT: ("measurements", "measure_states")},
    "MultiStepsState": {EXACT: ("acc_grads",)},
    "PerElementMeanAndSumSqDiffGradsState": {EXACT: ("mean_grads", "sum_sq_diff_grads")},
    "PerElementMeanAndVarianceEMAState": {NONNEGATIVE: ("variance_grads_ema",)},
    "ProdigyState": {NONNEGATIVE: ("exp_avg_sq",), EXACT: ("params0",)},
    "SAMState": {EXACT: ("cache",)},
    "ScaleByAdaDeltaState": {NONNEGATIVE: ("e_g", "e_x")},
    "ScaleByAdamState": {NONNEGATIVE: ("nu",)},
    "ScaleByAdanState": {NONNEGATIVE: ("n",)},
    "ScaleByAdemamixState": {NONNEGATIVE: ("nu",)},
    "ScaleByAmsgradState": {NONNEGATIVE: ("nu", "nu_max")},
    "ScaleByBacktrackingLinesearchState": {EXACT: ("grad",)},
    "ScaleByBeliefState": {NONNEGATIVE: ("nu",)},
    "ScaleByDistanceOverGradientsState": {EXACT: ("init_params",)},
    "ScaleByLBFGSState": {EXACT: ("params", "updates")},
    "ScaleByNovogradState": {NONNEGATIVE: ("nu",)},
    "ScaleByRStdDevState": {NONNEGATIVE: ("nu",)},
    "ScaleByRStdDevWithCountState": {NONNEGATIVE: ("nu",)},
    "ScaleByRmsState": {NONNEGATIVE: ("nu",)},
    "ScaleByRmsWithCountState": {NONNEGATIVE: ("nu",)},
    "ScaleByRpropState": {NONNEGATIVE: ("step_sizes",)},
    "ScaleByRssState": {NONNEGATIVE: ("sum_of_squares",)},
    "ScaleBySM3State": {NONNEGATIVE: ("mu",)},  # its nu is the momentum
    "ScaleBySimplifiedAdEMAMixState": {NONNEGATIVE: ("n",)},
    "ScaleByZoomLinesearchState": {EXACT: ("grad",)},
    "ScheduleFreeState": {EXACT: ("z",)},
    "SnapshotState": {EXACT: ("measurement",)},
}
"""By the class of optax's states, their fields that are not simply of either sign. Exact are
parameters, what small terms are added to or a difference is taken of, and what optax itself reads
from the state."""


def role_of(state: Any, path: tuple[Any, ...]) -> str:
    """What the classes along a path say of what it leads to; the innermost one decides.

    Args:
      state: of any transformation.
      path: of keys, to an array or to a tree shaped like the parameters.

    Returns:
      ``NONNEGATIVE``, ``EXACT``, or ``SIGNED`` where no class says either.
    """
    role = SIGNED
    for node, key in _nodes(state, path):
        declared = _declared(type(node)) if isinstance(key, GetAttrKey) else {}
        if any(declared.values()):
            role = next((role for role, names in declared.items() if key.name in names), SIGNED)
    return role


def fields_of(state: Any, path: tuple[Any, ...]) -> tuple[str, ...]:
    """The fields along a path, each also with its class: ``nu`` and ``ScaleByAdamState.nu``.

    Of a transformation whose state is a plain mapping its last key is one.

    Args:
      state: of any transformation.
      path: of keys, to an array or to a tree shaped like the parameters.
    """
    fields: list[str] = []
    for node, key in _nodes(state, path):
        if isinstance(key, GetAttrKey):
            fields += [key.name, f"{type(node).__name__}.{key.name}"]
        elif isinstance(key, DictKey) and key is path[-1]:
            fields.append(str(key.key))
    return tuple(fields)


def _nodes(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Every node on the way with the key that leads on; None in the place of an opaque one."""
    for key in path:
        yield state, key
        if isinstance(key, GetAttrKey):
            state = getattr(state, key.name, None)
        elif isinstance(key, DictKey | SequenceKey) and isinstance(state, Mapping | Sequence):
            state = state[key.key if isinstance(key, DictKey) else key.idx]
        else:
            state = None


def _declared(kind: type) -> Mapping[str, tuple[str, ...]]:
    """The fields that a class names, by their role."""
    if kind.__module__.partition(".")[0] == "optax":
        return OPTAX.get(kind.__name__, {})
    named = {role: getattr(kind, role, ()) for role in (NONNEGATIVE, EXACT)}
    named = {role: (x,) if isinstance(x, str) else x for role, x in named.items()}
    return {role: names for role, names in named.items() if isinstance(names, tuple)}
