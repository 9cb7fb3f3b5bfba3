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
from typing import Any

import optax

from adamw_jax._core import masks
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import Hyperparameter
from adamw_jax._core.foreign import foreign
from adamw_jax._core.kinds import check_kinds, check_names, check_weights, share_hyperparams
from adamw_jax._core.passes import Recipe, start, take_step
from adamw_jax._core.stage import Declared, Spec, Stage, stage_of
from adamw_jax._core.state import ComposeState
from adamw_jax._core.wrapper import check_last

Tree = Any


class Composed(Declared):
    """The optax transformation that ``compose`` returns, with its stages and options.

    Attributes:
      init: ``params -> state``, a ``ComposeState``.
      update: ``(gradients, state, params, **extra) -> (updates, state)``.
    """

    def __repr__(self) -> str:
        """Show the stages with their hyperparameters, and the options that were given."""
        lines = [str(spec) for spec in self.specs]
        for name in ("frozen", "norm_axes", "sequential"):
            if (value := getattr(self, name)) is not None:
                lines.append(f"{name}={'...' if name == 'frozen' else value}")
        return "<recipe\n" + "".join(f"  {line},\n" for line in lines) + ">"

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
        the average of a schedule-free method would be averaged again,
        or (in ``init``) two Lookaheads have the same parameter.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> tx = aj.compose(
      ...     aj.clip_gradient(1.0),
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.decoupled_decay(0.1, mask="kernel"),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    specs = tuple(spec for entry in stages for spec in _specs_of(entry))
    check_kinds(specs)
    check_names(specs)
    check_weights(specs)
    names, declared = share_hyperparams(specs)
    frozen = _frozen_of(stages, frozen)
    norm_axes = _norm_axes_of(stages, norm_axes)
    sequential = _sequential_of(stages, sequential)
    recipe = Recipe(specs, names, declared, frozen, norm_axes, sequential)

    def init(params: Tree) -> ComposeState:
        return start(recipe, params)

    def update(updates: Tree, state: ComposeState, params: Tree | None = None, **extra: Any):
        return take_step(recipe, updates, state, params, extra)

    return Composed.of(recipe, init, update)


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
    check_last(entry)
    if isinstance(entry, Composed):
        return entry.specs
    if isinstance(entry, Stage):
        return (entry.spec,)
    if isinstance(entry, optax.MultiSteps | optax.GradientTransformation):
        return (foreign(entry),)
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
