"""Run a recipe: make its state with ``start``, take a step with ``take_step``.

A step checks its arguments and goes through four passes: ``without_frozen``,
``with_decoded_state``, ``leaves_in_sequence``, ``through_stages``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.declare import Domain, Hyperparameter
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.encoding import check_encoded, update_encoded
from adamw_jax._core.gradients import entering, norms_of, step_of
from adamw_jax._core.kinds import twice
from adamw_jax._core.late import LATE, by_group, clocked
from adamw_jax._core.sequential import is_due, leaf_by_leaf, switched
from adamw_jax._core.stage import (
    Facts,
    Kind,
    Spec,
    Step,
    check_stored,
    check_width,
    require_params,
)
from adamw_jax._core.state import ComposeState, Hyperparams, check_hyperparams, check_owners

Tree = Any
Extra = dict[str, Any]


class Recipe(NamedTuple):
    """The checked arguments of ``compose``.

    Attributes:
      specs: the declarations of the stages.
      names: for each stage, the names in the state of the hyperparameters that it declares.
      hyperparams: the hyperparameters by their names in the state.
      frozen: mask of the leaves that do not move, or None.
      norm_axes: as for ``compose``.
      sequential: as for ``compose``.
    """

    specs: tuple[Spec, ...]
    names: tuple[dict[str, str], ...]
    hyperparams: Mapping[str, Hyperparameter]
    frozen: masks.Mask
    norm_axes: tuple[str, ...] | None
    sequential: bool | None


_STARTED: contextvars.ContextVar[list[Recipe] | None] = contextvars.ContextVar(
    "started", default=None
)


@contextlib.contextmanager
def recipes_started() -> Iterator[list[Recipe]]:
    """Collect the recipes that make a state inside, also under wrappers, outer ones first."""
    found: list[Recipe] = []
    token = _STARTED.set(found)
    try:
        yield found
    finally:
        _STARTED.reset(token)


def start(recipe: Recipe, params: Tree) -> ComposeState:
    """Make the state of a recipe."""
    if (started := _STARTED.get()) is not None:
        started.append(recipe)
    whole = params = numerics.as_arrays(params)
    for spec in recipe.specs:
        if spec.settings is not None:
            spec.settings(whole)
    if recipe.frozen is not None:
        params = masks.hide(params, masks.resolve(recipe.frozen, params, "frozen"))
    count = jnp.zeros([], jnp.int32)
    hyperparams = live_at(None, count, recipe.hyperparams)
    memories: dict[str, Any] = {}
    for spec in recipe.specs:
        memory = optax.EmptyState() if spec.init is None else spec.init(params)
        if not _has_slot(spec, memory):
            continue
        if spec.name in memories:
            raise ValueError(twice(spec.name))
        memories[spec.name] = memory
    check_owners(memories)
    encoding = [spec for spec in recipe.specs if spec.storage is not None]
    for choice in dict.fromkeys(spec.storage for spec in encoding):
        under = {spec.name: memories[spec.name] for spec in encoding if spec.storage == choice}
        choice.check_names(under, whole)
    return ComposeState(count, hyperparams, memories)


def take_step(
    recipe: Recipe, updates: Tree, state: ComposeState, params: Tree | None, extra: Extra
) -> tuple[Tree, ComposeState]:
    """Check the arguments of ``update`` and take a step."""
    check_state(state, recipe.hyperparams, recipe.specs)
    updates, params = entering(updates, params)
    _check_widths(state, recipe.specs, updates)
    with step_of(recipe.norm_axes, updates, params), switched(recipe.sequential):
        moved, new = without_frozen(recipe, updates, state, params, extra)
    return moved, numerics.owned(new, updates, params, extra)


def without_frozen(
    recipe: Recipe, updates: Tree, state: ComposeState, params: Tree | None, extra: Extra
) -> tuple[Tree, ComposeState]:
    """Hide the frozen leaves from the step; their update is zero."""
    if recipe.frozen is None:
        return with_decoded_state(recipe, updates, state, params, extra)
    still = masks.resolve(recipe.frozen, updates if params is None else params, "frozen")
    moving = masks.hide(updates, still)
    theirs = None if params is None else masks.hide(params, still)
    some, new_state = with_decoded_state(recipe, moving, state, theirs, extra)
    like = updates if params is None else params  # inside ``shard_map`` these may vary less
    zeros = jax.tree.map(lambda x, u: jnp.zeros_like(x, dtype=u.dtype), like, updates)
    zeros = numerics.leaving(zeros, updates, params)
    return masks.merge(jax.tree.map(lambda f: not f, still), some, zeros), new_state


def with_decoded_state(
    recipe: Recipe, updates: Tree, state: ComposeState, params: Tree | None, extra: Extra
) -> tuple[Tree, ComposeState]:
    """Decode the states that this recipe encodes, take the step, and encode them again."""
    encoding = [spec for spec in recipe.specs if spec.storage is not None]
    for spec in encoding:
        if spec.init is not None:
            like = updates if params is None else params
            memory, least = state.stages[spec.name], spec.storage.min_size
            check_encoded(spec.name, memory, spec.init, like, least)

    def decode(state: ComposeState) -> ComposeState:  # a foreign transformation decodes its own
        decoded = {spec.name: decode_state(state.stages[spec.name]) for spec in encoding}
        return state._replace(stages={**state.stages, **decoded})

    def step(updates: Tree, state: ComposeState, params: Tree | None, **extra: Any):
        return leaves_in_sequence(recipe, updates, state, params, extra)

    choices = [spec.storage.sequential for spec in encoding]
    with switched(next((choice for choice in choices if choice is not None), None)):
        return update_encoded(step, updates, state, params, extra, decode=decode)


def leaves_in_sequence(
    recipe: Recipe, updates: Tree, state: ComposeState, params: Tree | None, extra: Extra
) -> tuple[Tree, ComposeState]:
    """Run one leaf after the other, if stages reduce over leaves and the switch is on."""

    def step(updates: Tree, state: ComposeState) -> tuple[Tree, ComposeState, Tree]:
        return through_stages(recipe, updates, state, params, extra, in_sequence=True)

    reduces = any(spec.reduces for spec in recipe.specs[1:])  # the first one's input exists already
    if reduces and LATE not in state.stages and is_due(updates, state):
        return leaf_by_leaf(step, updates, state)
    return through_stages(recipe, updates, state, params, extra, in_sequence=False)[:2]


def through_stages(
    recipe: Recipe,
    updates: Tree,
    state: ComposeState,
    params: Tree | None,
    extra: Extra,
    *,
    in_sequence: bool,
) -> tuple[Tree, ComposeState, Tree]:
    """Run the stages in order; return updates, new state and ``Facts.leaf_scalars``."""
    used = live_at(state.hyperparams, state.count, recipe.hyperparams)
    values = used.values_by_name()
    memories, facts = dict(state.stages), Facts(decoded=True)
    whole_at = _direction_at(recipe.specs)

    def run(
        flow: Tree, memories: dict[str, Any], params: Tree | None, facts: Facts, some: slice
    ) -> Tree:
        for i in range(len(recipe.specs))[some]:
            spec, own = recipe.specs[i], recipe.names[i]
            if spec.needs_params:
                require_params(spec.name, params)
            own_values = {name: values[key] for name, key in own.items()}
            step = Step(state.count, own_values, params, extra, facts, in_sequence)
            if spec.takes is None and flow is not updates:
                flow = numerics.leaving(flow, updates, params)
            if spec.takes is Kind.GRADIENT and spec.gives is not Kind.GRADIENT:
                facts.gradient = flow
            with norms_of(spec.name), jax.named_scope(spec.name):
                flow, memory = spec.apply(flow, _memory_of(spec, memories, step, flow), step)
            if spec.name in memories:
                memories[spec.name] = memory
            if i == whole_at:
                _write_after_read(recipe.specs[some], memories, flow, step)
        return flow

    if LATE in memories:
        inside = [i for i, spec in enumerate(recipe.specs) if clocked(spec)]
        first, last = inside[0], inside[-1] + 1
        flow = run(updates, memories, params, facts, slice(first))
        middle = functools.partial(run, some=slice(first, last))
        flow = by_group(middle, recipe.specs[first:last], flow, memories, params, facts)
        step = Step(state.count, {}, params, extra, facts)
        _write_after_read(recipe.specs[:first], memories, flow, step)
        flow = run(flow, memories, params, facts, slice(last, None))
    else:
        flow = run(updates, memories, params, facts, slice(None))
    new_state = ComposeState(numerics.increment(state.count), used, memories)
    return numerics.leaving(flow, updates, params), new_state, facts.leaf_scalars


def _write_after_read(
    specs: tuple[Spec, ...], memories: dict[str, Any], direction: Tree, step: Step
) -> None:
    for early in specs:
        if early.write_after_read is not None:
            with jax.named_scope(early.name):
                memory = early.write_after_read(memories[early.name], direction, step)
            memories[early.name] = memory


def _has_slot(spec: Spec, memory: Any) -> bool:
    """Return whether a stage has a state; for a foreign one, whether ``init`` made arrays."""
    return bool(jax.tree.leaves(memory)) if spec.foreign else spec.init is not None


def _memory_of(spec: Spec, memories: Mapping[str, Any], step: Step, flow: Tree) -> Any:
    if spec.name in memories or not spec.foreign or spec.init is None:
        return memories.get(spec.name, optax.EmptyState())
    memory = spec.init(flow if step.params is None else step.params)
    if jax.tree.leaves(memory):
        raise ValueError(
            f"the state has no entry for {spec.name!r}, which needs one for these parameters. "
            "Convert it with migrate_state(saved, tx, params)."
        )
    return memory


def live_at(
    old: Hyperparams | None, count: jax.Array, declared: Mapping[str, Hyperparameter]
) -> Hyperparams:
    """Return the hyperparameters of the next step: pinned values, and the code's for the others."""
    names = sorted(declared)
    code = _in_code([declared[name] for name in names], count)
    domains = _domains(declared)
    injected = [name for name in names if isinstance(declared[name].value, jax.Array)]
    if old is None or not names:
        return Hyperparams(domains, code, jnp.zeros(code.shape, jnp.bool_), injected)
    return Hyperparams(domains, lax.select(old.pins, old.array, code), old.pins, injected)


def _in_code(declared: list[Hyperparameter], count: jax.Array) -> jax.Array:
    """Return the values in the code at a step, in one array."""
    if all(isinstance(hyper.value, int | float) for hyper in declared):
        return jnp.asarray([hyper.value for hyper in declared], numerics.default_float())
    return jnp.stack([hyper.at(count) for hyper in declared])


def _domains(declared: Mapping[str, Hyperparameter]) -> dict[str, Domain]:
    return {name: declared[name].domain for name in sorted(declared)}


def check_state(
    state: Any, declared: Mapping[str, Hyperparameter], specs: tuple[Spec, ...]
) -> None:
    """Raise unless ``state`` belongs to the recipe of these hyperparameters and stages."""
    if not isinstance(state, ComposeState):
        raise TypeError(
            f"the state is a {type(state).__name__}, not the ComposeState that init of this recipe "
            "returns; a checkpoint restored without a target loses its types: restore into "
            "tx.init(params), or use migrate_state(saved, tx, params)."
        )
    expected = {spec.name for spec in specs if spec.init is not None and not spec.foreign}
    others = {spec.name for spec in specs if spec.foreign} | {LATE}
    found = check_hyperparams(state.hyperparams)
    if set(state.stages) - others != expected or found.names != tuple(sorted(declared)):
        raise ValueError(
            f"the state belongs to another recipe: it has stages {sorted(state.stages)} and "
            f"hyperparameters {[*found.names]}, this recipe has {sorted(expected)} and "
            f"{sorted(declared)}. Convert it with migrate_state(saved, tx, params)."
        )
    found.check_pins(_domains(declared))


def _check_widths(state: ComposeState, specs: tuple[Spec, ...], gradient: Tree) -> None:
    """Raise if a state has scalars of another float dtype, or codes without a ``storage``."""
    held = state.hyperparams
    values = [np.zeros((), x.dtype) for x in jax.tree.leaves(held.array)]
    check_width("this recipe", values, gradient)
    for spec in specs:
        if not spec.foreign:
            check_stored(spec, state.stages.get(spec.name))
            check_width(spec.name, state.stages.get(spec.name), gradient)


def _direction_at(specs: tuple[Spec, ...]) -> int:
    """Return the index of the stage that makes the direction, or of the last that averages it."""
    makers = [
        i
        for i, spec in enumerate(specs)
        if spec.gives is Kind.DIRECTION
        and (spec.takes is Kind.MOMENTS or (spec.takes is Kind.DIRECTION and spec.init is not None))
    ]
    return max(makers, default=-1)
