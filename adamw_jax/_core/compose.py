"""``compose``: a list of stages becomes one optax transformation.

It checks at construction that the kinds fit (gradient -> moments -> direction -> update). It keeps
the state of each stage under the name of the stage, and the hyperparameters of all stages in one
record. A composed recipe is one entry in ``optax.chain``.

>>> import jax.numpy as jnp
>>> from adamw_jax import (correct_bias, ema, ema_of_squares, estimate_moments, precondition,
...                        scale_by_learning_rate)
>>> tx = compose(
...     estimate_moments(ema(0.9), ema_of_squares(0.999)),
...     correct_bias(),
...     precondition(eps=1e-8),
...     scale_by_learning_rate(0.1),
... )
>>> params = jnp.array([1.0, -1.0])
>>> updates, state = tx.update(jnp.array([3.0, -5.0]), tx.init(params), params)
>>> updates.round(3)
Array([-0.1,  0.1], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import Domain, Hyperparameter
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.encoding import check_encoded, update_encoded
from adamw_jax._core.gradients import entering, norms_of, step_of
from adamw_jax._core.kinds import check_kinds, check_names, share_hyperparams, twice
from adamw_jax._core.sequential import is_due, leaf_by_leaf, switched
from adamw_jax._core.stage import (
    Declared,
    Facts,
    Kind,
    Spec,
    Stage,
    Step,
    check_width,
    increment,
    require_params,
    stage_of,
    transformation,
)
from adamw_jax._core.state import ComposeState, Hyperparams, check_hyperparams, check_owners

Tree = Any


class Recipe(NamedTuple):
    """The checked arguments of ``compose``."""

    specs: tuple[Spec, ...]
    hyperparams: Mapping[str, Hyperparameter]
    frozen: masks.Mask
    norm_axes: tuple[str, ...] | None
    sequential: bool | None


class Composed(Declared):
    """The optax transformation that ``compose`` returns, with its stages and options.

    Attributes:
      init: ``params -> state``, a ``ComposeState``.
      update: ``(gradients, state, params, **extra) -> (updates, state)``.
    """

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The declarations of its stages, in order."""
        return self.declaration.specs

    @property
    def hyperparams(self) -> Mapping[str, Hyperparameter]:
        """Its hyperparameters by their names in the state."""
        return self.declaration.hyperparams

    @property
    def frozen(self) -> masks.Mask:
        """Mask of the leaves that do not move, or None."""
        return self.declaration.frozen

    @property
    def norm_axes(self) -> tuple[str, ...] | None:
        """Axes of a mesh over which norms are summed inside ``jax.shard_map``, or None."""
        return self.declaration.norm_axes

    @property
    def sequential(self) -> bool | None:
        """Whether a step runs one leaf after the other; None: only on a CPU."""
        return self.declaration.sequential


def compose(
    *stages: Any,
    frozen: masks.Mask = None,
    norm_axes: str | Sequence[str] | None = None,
    sequential: bool | None = None,
) -> Composed:
    """Run stages one after the other, with one step count and one record of hyperparameters.

    Args:
      *stages: stages of this library, composed recipes (their stages are inserted here), other
        optax transformations (the output has the kind of the input; not allowed between stages on
        moments), or pairs ``(name, transformation)``. None is dropped, so that an optional stage
        can be written ``amsgrad_max() if amsgrad else None``.
      frozen: mask of the leaves that do not move and have no state (see ``decoupled_decay`` for the
        forms of a mask); None for no leaf.
      norm_axes: for an update inside ``jax.shard_map``: the names of the mesh axes along which
        parameters are sharded. Norms and means over a leaf or the tree are then summed over these
        axes, for each leaf over those along which its type varies. With ``check_vma=False`` types
        do not show this, and every leaf counts as a shard along all of them. Give ``()`` if every
        device trains its own model. None: a stage that needs the norm of a shard raises an error,
        if types show that it is a shard. The choice also holds for recipes, wrappers and stages
        inside, but not for norms that optax computes.
      sequential: whether a compiled step runs one leaf after the other if this limits the scratch
        memory to that of one leaf (trust ratios, clipping by leaf, delayed moments, encoded state).
        The values are the same. None: only on a CPU, since no gain is known elsewhere.

    Returns:
      A ``GradientTransformationExtraArgs``. Its state is a ``ComposeState``. If several stages have
      a hyperparameter of the same name, each is called ``stage.name`` there; a learning rate that
      all of them share keeps its name.

    Raises:
      ValueError: the kinds do not fit, two stages with state or hyperparameters have the same name,
        or (in ``init``) two Lookaheads have the same parameter.
    """
    specs = tuple(spec for entry in stages for spec in _specs_of(entry))
    check_kinds(specs)
    check_names(specs)
    names, declared = share_hyperparams(specs)
    frozen = _frozen_of(stages, frozen)
    norm_axes = _norm_axes_of(stages, norm_axes)
    sequential = _sequential_of(stages, sequential)
    stores = [spec.storage.sequential for spec in specs if spec.storage is not None]
    store_sequential = next((choice for choice in stores if choice is not None), None)
    reduces = any(spec.reduces for spec in specs[1:])  # the input of the first exists already
    whole_at = _direction_at(specs)

    def init(params: Tree) -> ComposeState:
        whole = params = numerics.as_arrays(params)
        if frozen is not None:
            params = masks.hide(params, masks.resolve(frozen, params, "frozen"))
        count = jnp.zeros([], jnp.int32)
        hyperparams = live_at(None, count, declared)
        memories: dict[str, Any] = {}
        for spec in specs:
            memory = optax.EmptyState() if spec.init is None else spec.init(params)
            if not _has_slot(spec, memory):
                continue
            if spec.name in memories:
                raise ValueError(twice(spec.name))
            memories[spec.name] = memory
        check_owners(memories)
        for choice in {spec.storage: None for spec in specs if spec.storage is not None}:
            under = {s.name: memories[s.name] for s in specs if s.storage == choice}
            choice.check_names(under, whole)
        return ComposeState(count, hyperparams, memories)

    def update(updates: Tree, state: ComposeState, params: Tree | None = None, **extra: Any):
        check_state(state, declared, specs)
        updates, params = entering(updates, params)
        check_widths(state, specs, updates)
        with step_of(norm_axes, updates, params), switched(sequential):
            moved, new = without_frozen(updates, state, params, extra)
        return moved, numerics.owned(new, updates, params, extra)

    def without_frozen(
        updates: Tree, state: ComposeState, params: Tree | None, extra: dict[str, Any]
    ) -> tuple[Tree, ComposeState]:
        if frozen is not None:
            still = masks.resolve(frozen, updates if params is None else params, "frozen")
            moving = masks.hide(updates, still)
            theirs = None if params is None else masks.hide(params, still)
            some, new_state = run(moving, state, theirs, extra)
            whole = numerics.leaving(jax.tree.map(jnp.zeros_like, updates), updates, params)
            return masks.merge(jax.tree.map(lambda f: not f, still), some, whole), new_state
        return run(updates, state, params, extra)

    def run(updates: Tree, state: ComposeState, params: Tree | None, extra: dict[str, Any]) -> Any:
        for spec in specs:
            if spec.storage is not None and spec.init is not None:
                memory = state.stages[spec.name]
                like = updates if params is None else params
                check_encoded(spec.name, memory, spec.init, like, spec.storage.min_size)
        with switched(store_sequential):
            return update_encoded(update_moving, updates, state, params, extra, decode=decode)

    def decode(state: ComposeState) -> ComposeState:
        memories = dict(state.stages)
        for spec in specs:
            if spec.storage is not None:  # a foreign transformation decodes its own
                memories[spec.name] = decode_state(memories[spec.name])
        return state._replace(stages=memories)

    def update_moving(updates: Tree, state: ComposeState, params: Tree | None, **extra: Any):
        def step(updates: Tree, state: ComposeState) -> tuple[Tree, ComposeState, Tree]:
            return through_stages(updates, state, params, extra, in_sequence=True)

        if reduces and is_due(updates, state):
            return leaf_by_leaf(step, updates, state)
        return through_stages(updates, state, params, extra, in_sequence=False)[:2]

    def through_stages(
        updates: Tree, state: ComposeState, params: Tree | None, extra: Any, *, in_sequence: bool
    ) -> tuple[Tree, ComposeState, Tree]:
        used = live_at(state.hyperparams, state.count, declared)
        values = {name: used.value(name) for name in declared}
        flow, memories, facts = updates, dict(state.stages), Facts(decoded=True)
        for i, (spec, own) in enumerate(zip(specs, names, strict=True)):
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
                for early in specs:
                    if early.write_after_read is not None:
                        with jax.named_scope(early.name):
                            memory = early.write_after_read(memories[early.name], flow, step)
                        memories[early.name] = memory
        new_state = ComposeState(increment(state.count), used, memories)
        return numerics.leaving(flow, updates, params), new_state, facts.leaf_scalars

    return Composed.of(Recipe(specs, declared, frozen, norm_axes, sequential), init, update)


def _direction_at(specs: tuple[Spec, ...]) -> int:
    """Return the index of the stage that makes the direction, or of the last that averages it."""
    makers = [
        i
        for i, spec in enumerate(specs)
        if spec.gives is Kind.DIRECTION
        and (spec.takes is Kind.MOMENTS or (spec.takes is Kind.DIRECTION and spec.init is not None))
    ]
    return max(makers, default=-1)


def composed_like(recipe: Composed, specs: Sequence[Spec]) -> Composed:
    """Compose other stages with the options of a recipe."""
    return compose(
        *map(stage_of, specs),
        frozen=recipe.frozen,
        norm_axes=recipe.norm_axes,
        sequential=recipe.sequential,
    )


def _norm_axes_of(
    stages: tuple[Any, ...], norm_axes: str | Sequence[str] | None
) -> tuple[str, ...] | None:
    own = (norm_axes,) if isinstance(norm_axes, str) else norm_axes
    if own is not None and not all(isinstance(axis, str) for axis in own):
        raise TypeError(f"norm_axes must be names of mesh axes or None, got {norm_axes!r}.")
    given = [None if own is None else tuple(own)]
    given += [entry.norm_axes for entry in _recipes_in(stages)]
    given = list(dict.fromkeys(axes for axes in given if axes is not None))
    if len(given) > 1:
        raise ValueError(f"recipes in one compose() have different norm_axes, {given}: give one.")
    return given[0] if given else None


def _sequential_of(stages: tuple[Any, ...], sequential: bool | None) -> bool | None:
    if sequential is not None:
        switch("sequential", sequential)
        return sequential
    given = {entry.sequential for entry in _recipes_in(stages)} - {None}
    if len(given) > 1:
        raise ValueError(
            "recipes in one compose() have sequential=True and sequential=False: give sequential= "
            "to compose()."
        )
    return given.pop() if given else None


def _recipes_in(stages: tuple[Any, ...]) -> list[Composed]:
    # A transformation is a tuple, too: look only into pairs (name, transformation).
    inner = [entry[1] if type(entry) is tuple and len(entry) == 2 else entry for entry in stages]
    return [entry for entry in inner if isinstance(entry, Composed)]


def _frozen_of(stages: tuple[Any, ...], frozen: masks.Mask) -> masks.Mask:
    given = [entry.frozen for entry in _recipes_in(stages)] + [frozen]
    given = [mask for mask in given if mask is not None]
    if len(given) > 1:
        raise ValueError("several recipes in one compose() freeze parameters; give one mask.")
    return given[0] if given else None


def _specs_of(entry: Any) -> tuple[Spec, ...]:
    if entry is None:
        return ()
    if isinstance(entry, Composed):
        return entry.specs
    if isinstance(entry, Stage):
        return (entry.spec,)
    if isinstance(entry, optax.MultiSteps):
        return (_foreign("multi_steps", transformation(entry, "a stage")),)
    if isinstance(entry, optax.GradientTransformation):
        return (_foreign(_name_of(entry), transformation(entry, "a stage")),)
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
        name, inner = entry
        specs = _specs_of(inner)
        if len(specs) != 1:
            raise TypeError(f"({name!r}, ...) must name one transformation, got {inner!r}.")
        return (specs[0]._replace(name=name),)
    raise TypeError(
        f"compose() takes stages and optax transformations, got {entry!r}; did you forget to call "
        "the function that makes the stage?"
    )


def _name_of(tx: optax.GradientTransformation) -> str:
    """Name the optax function that built ``tx``, from its closures: ``clip``, ``chain``, ..."""
    for function in (tx.update, tx.init):
        qualified = getattr(function, "__qualname__", "")
        if ".<locals>" in qualified:
            return qualified.split(".<locals>")[0].rsplit(".", 1)[-1]
    return "transformation"


def _foreign(name: str, inner: optax.GradientTransformationExtraArgs) -> Spec:
    """Declare an optax transformation as a stage whose output has the kind of its input."""

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        return inner.update(flow, state, step.params, **step.extra)

    return Spec(name, None, None, apply, inner.init, {}, False, False)


def _has_slot(spec: Spec, memory: Any) -> bool:
    """Return whether a stage has a state; for a foreign one, whether ``init`` made arrays."""
    foreign = spec.takes is None
    return bool(jax.tree.leaves(memory)) if foreign else spec.init is not None


def _memory_of(spec: Spec, memories: Mapping[str, Any], step: Step, flow: Tree) -> Any:
    if spec.name in memories or spec.takes is not None or spec.init is None:
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
    given = [declared[name].at(count) for name in names]
    code = jnp.stack(given) if given else jnp.zeros([0], numerics.default_float())
    domains = _domains(declared)
    injected = [name for name in names if isinstance(declared[name].value, jax.Array)]
    if old is None or not names:
        return Hyperparams(domains, code, jnp.zeros(code.shape, jnp.bool_), injected)
    return Hyperparams(domains, lax.select(old.pins, old.array, code), old.pins, injected)


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
    expected = {spec.name for spec in specs if spec.init is not None and spec.takes is not None}
    foreign = {spec.name for spec in specs if spec.takes is None}
    found = check_hyperparams(state.hyperparams)
    if set(state.stages) - foreign != expected or found.names != tuple(sorted(declared)):
        raise ValueError(
            f"the state belongs to another recipe: it has stages {sorted(state.stages)} and "
            f"hyperparameters {[*found.names]}, this recipe has {sorted(expected)} and "
            f"{sorted(declared)}. Convert it with migrate_state(saved, tx, params)."
        )
    found.check_pins(_domains(declared))


def check_widths(state: ComposeState, specs: tuple[Spec, ...], gradient: Tree) -> None:
    """Raise if scalars of a state have another float dtype than the present default."""
    held = state.hyperparams
    check_width("this recipe", [held.value(name) for name in held.names[:1]], gradient)
    for spec in specs:
        if spec.takes is not None:
            check_width(spec.name, state.stages.get(spec.name), gradient)
