"""Convert the ``state_dict()`` of an optimizer of PyTorch, for its Adam family and SGD.

>>> import jax.numpy as jnp, numpy as np
>>> from adamw_jax import adamw
>>> moments = {"step": np.float32(3), "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}
>>> saved = {"state": {0: moments}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}
>>> int(from_torch(saved, adamw(1e-3), {"w": jnp.ones(2)}).count)
3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax._core import masks, numerics
from adamw_jax._core.boxes import boxed
from adamw_jax._core.checks import whole_number
from adamw_jax._core.compose import Composed
from adamw_jax._core.encoded import decode_state, encode_like
from adamw_jax._core.wrapper import Wrapper, fill_inner
from adamw_jax.moments import MaximumState, MomentsState
from adamw_jax.state._optax import check_stages, filled_part, known_stages

Tree = Any
State = Any


class TorchState(NamedTuple):
    """The accumulators of PyTorch as trees like the parameters, None if it has none."""

    exp_avg: Tree = None
    exp_avg_sq: Tree = None
    max_exp_avg_sq: Tree = None
    momentum_buffer: Tree = None


def from_torch(
    saved: Mapping[str, Any],
    tx: Composed | Wrapper,
    params: Tree,
    *,
    names: Sequence[str] | Mapping[str, int | str] | None = None,
    convert: Callable[[str, np.ndarray], Any] | None = None,
    count: int | None = None,
) -> State:
    """Convert the ``state_dict()`` of a PyTorch optimizer to a state of the recipe ``tx``.

    Args:
      saved: the ``state_dict()`` of ``Adam``, ``AdamW``, ``RAdam`` or ``SGD`` with momentum, with
        tensors or NumPy arrays. All parameters have the same step and the same betas.
      tx: the recipe of this library to continue with, also in ``skip_bad_steps``.
        Frozen leaves need no entry.
      params: current parameters, already in the layout of this program.
      names: the leaves of ``params`` by their slash-separated names, in the order in which PyTorch
        got its parameters. Or a mapping from the name of a leaf to its number in PyTorch, or to its
        name if the optimizer was made with named parameters. None: the order is that of
        ``jax.tree.leaves(params)``, which sorts the keys of dicts.
      convert: function from the name of a leaf and an array of PyTorch to the layout here, for
        example ``lambda name, x: x.T if name.endswith("kernel") else x`` for ``torch.nn.Linear``;
        None if the layouts are equal.
      count: number of updates made, which the state of SGD lacks; None for the step in ``saved``.

    Returns:
      A state of ``tx``. The learning rate and other hyperparameters are those of ``tx``. Bias
      correction takes the betas of ``saved``; if a scheduler changed them, as ``OneCycleLR`` does,
      it is right only with ``bias_correction="current"``.

    Raises:
      ValueError: ``saved`` is of another optimizer, a leaf has no entry or another shape, steps or
        betas differ, or the accumulators are not those of ``tx``.

    Example:
      >>> import jax.numpy as jnp, numpy as np, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> moments = {"step": 10.0, "exp_avg": np.zeros(3), "exp_avg_sq": np.ones(3)}
      >>> saved = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
      >>> state = aj.from_torch(saved, aj.adamw(1e-3), params, names=["w"])
      >>> int(state.count)
      10
    """
    if isinstance(tx, Wrapper):
        inside: Any = tx.inner
        state = from_torch(saved, inside, params, names=names, convert=convert, count=count)
        return fill_inner(tx, params, state, None)
    if not isinstance(tx, Composed):
        raise TypeError(f"tx must be a recipe of adamw_jax, such as adamw(1e-3), got {tx!r}.")
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    if not groups or "state" not in saved:
        raise ValueError("saved must be optimizer.state_dict(), with 'state' and 'param_groups'.")
    plain = numerics.unbox(numerics.as_arrays(params))
    target = tx.init(plain)
    if tx.frozen is not None:
        plain = masks.hide(plain, masks.resolve(tx.frozen, plain, "frozen"))
    entries = _entries(saved, groups, numerics.unbox(params), numerics.leaf_names(plain), names)
    theirs = _trees(entries, plain, convert)
    steps = jnp.asarray(_count(entries, count), jnp.int32)
    return boxed(
        encode_like(target, _filled(target, tx, theirs, steps, _betas(groups))), tx, params, None
    )


def _filled(target: State, tx: Composed, theirs: TorchState, steps: jax.Array, betas: Any) -> State:
    ours: Any = decode_state(target)
    moments, maximum = known_stages(ours.stages)
    if moments is None:
        raise ValueError("tx has no estimate_moments stage, which would take the accumulators.")
    check_stages(tx, ours.stages, (moments, maximum))
    rates = next(spec.hyperparams for spec in tx.specs if spec.name == moments)
    has = {field: field for field in TorchState._fields if getattr(theirs, field) is not None}
    held, field = ours.stages[moments], has.get("exp_avg", has.get("momentum_buffer", ""))
    of_first = (held.first, theirs, field, "first moment", steps, rates, ("b1", betas[0]))
    square = has.get("exp_avg_sq", "")
    of_second = (held.second, theirs, square, "second moment", steps, rates, ("b2", betas[1]))
    stages = {**ours.stages}
    stages[moments] = MomentsState(filled_part(*of_first), filled_part(*of_second), steps)
    if (maximum is not None) != ("max_exp_avg_sq" in has):
        which = "tx" if maximum is not None else "saved"
        raise ValueError(f"only {which} has AMSGrad's maximum: give the amsgrad= of the saved run.")
    if maximum is not None:
        if not isinstance(stages[maximum], MaximumState):
            raise ValueError(
                "PyTorch keeps the maximum of the raw second moment, tx that of the corrected one: "
                'build tx with amsgrad=True, or with maximum="raw".'
            )
        like = stages[maximum][0]
        stages[maximum] = MaximumState(numerics.cast_like(theirs.max_exp_avg_sq, like))
    return ours._replace(count=steps, stages=stages)


def _entries(
    saved: Any, groups: Any, params: Tree, active: list[str], names: Any
) -> dict[str, Mapping[str, Any]]:
    """Return PyTorch's entries of the leaves that are not frozen, by the names of the leaves."""
    every, numbers = numerics.leaf_names(params), [n for group in groups for n in group["params"]]
    called = [name for group in groups for name in group.get("param_names", ())]
    if isinstance(names, Mapping):
        by_name = dict(zip(called, numbers, strict=False))
        place = {name: by_name.get(key, key) for name, key in names.items()}
    else:
        order = every if names is None else [*names]
        if len(order) != len(numbers):
            raise ValueError(
                f"saved has {len(numbers)} parameters, but "
                f"{'params' if names is None else 'names'} has {len(order)}, {order}: give names=, "
                "the names of the leaves in PyTorch's order."
            )
        place = dict(zip(order, numbers, strict=True))
    if unknown := sorted({*place} - {*every}):
        raise ValueError(f"names has {unknown}, which are no leaves of params; these are {every}.")
    found = {name: saved["state"].get(place.get(name)) for name in active}
    if missing := [name for name, entry in found.items() if not entry]:
        raise ValueError(
            f"saved has no state for {missing}: map them with names=, or, if they never had a "
            "gradient, freeze them with compose(tx, frozen=...) and thaw them with migrate_state."
        )
    return found


def _trees(entries: Mapping[str, Any], params: Tree, convert: Any) -> TorchState:
    kinds = {frozenset(entry) - {"step"} for entry in entries.values()}
    known = {
        frozenset({"exp_avg", "exp_avg_sq"}),
        frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        frozenset({"momentum_buffer"}),
    }
    if len(kinds) != 1 or not kinds <= known:
        raise ValueError(
            f"saved has the entries {sorted(set().union(*kinds))}: only the states of Adam, AdamW, "
            "RAdam and SGD with momentum can be converted."
        )

    def leaf(name: str, param: Any, field: str) -> jax.Array:
        value = as_numpy(entries[name][field])
        value = value if convert is None else convert(name, value)
        if np.shape(value) != np.shape(param):
            raise ValueError(
                f"{field} of {name!r} has shape {np.shape(value)}, the leaf {np.shape(param)}: "
                "give convert= to change the layout, or names= for another order."
            )
        return jnp.asarray(value)

    def tree(field: str) -> Tree:
        return numerics.map_named(lambda name, param: leaf(name, param, field), params)

    return TorchState(**{field: tree(field) for field in next(iter(kinds))})


def as_numpy(x: Any) -> np.ndarray:
    """Return a tensor of PyTorch, or an array, as an array of NumPy."""
    if x is None:
        raise ValueError("saved has a momentum_buffer of None: SGD had no momentum, or no step.")
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def _count(entries: Mapping[str, Any], count: int | None) -> int:
    steps = {name: int(as_numpy(e["step"])) for name, e in entries.items() if "step" in e}
    if len({*steps.values()}) > 1:
        raise ValueError(
            f"the parameters of saved have different steps, {steps}: convert those with the most, "
            "with the others frozen, and let the others begin with migrate_state(thaw=True)."
        )
    own = next(iter(steps.values()), None)
    if own is None and count is None:
        raise ValueError("the state of SGD has no step: give count=, the number of updates made.")
    if own is not None and count is not None and own != count:
        raise ValueError(f"count={count}, but saved has made {own} steps: leave count out.")
    return whole_number("count", count) if own is None else own


def _betas(groups: Any) -> Any:
    betas = {tuple(map(float, group["betas"])) for group in groups if "betas" in group}
    if len(betas) > 1:
        raise ValueError(f"the groups of saved have different betas, {sorted(betas)}.")
    return next(iter(betas), (None, None))
