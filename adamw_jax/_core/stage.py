"""The stage: one step of a recipe, and a plain optax transformation at the same time.

Four kinds of value flow through a recipe::

    gradient -> moments -> direction (unscaled step) -> update (ready for apply_updates)

A stage declares what it takes and gives, its hyperparameters by name, and two pure functions:
``init(params)`` makes its state, ``apply(flow, state, step)`` takes one step. ``compose`` runs
stages with a common step count and common hyperparameters. A stage that is used alone, as in
``optax.chain``, counts its own steps and evaluates its own hyperparameters.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax._core import numerics
from adamw_jax._core.declare import Hyperparameter
from adamw_jax._core.encoded import is_encoded
from adamw_jax._core.gradients import entering, norms_of, step_of

Tree = Any


class Kind(enum.Enum):
    """The kinds of value that flow from one stage to the next."""

    GRADIENT = "gradient"
    MOMENTS = "moments"
    DIRECTION = "direction"
    UPDATE = "update"


# Facts about each leaf: their value for the leaves that ``only`` hides from the stage that sets it.
_FALSE, _ONE = {"elsewhere": False}, {"elsewhere": 1.0}


@dataclasses.dataclass
class Facts:
    """Messages from a stage to later stages of the same step: one sets a field, others read it.

    Attributes:
      gradient: the gradient from which this step makes its moments or direction, after clipping
        and L2; None if no stage of the recipe does.
      skip_step: if true, this step does not move or decay anything; a bool array, or a tree with
        one for every leaf. None if no stage set it.
      rectifier: the factor r_t from ``rectify_variance``, a scalar; 0 in a step that it skips.
      step_size: the factor on the gradient in this step, a scalar, from a stage that estimates it.
      parameter_scale: the factor of each leaf by which the step was scaled.
      leaf_scalars: for some leaves or all, a scalar that is available only after the whole
        direction of the leaf was computed; ``sequential`` starts the next leaf after it.
      again: given the direction of a factored second moment, computes it once more, so that XLA
        need not store it for a second reader; given another tree, returns it.
      delayed: whether the direction reads the second moment of the previous step.
      decoded: whether the recipe has decoded the state of its stages.
      probe_gradient: squared norm of the gradient, for ``probe``.
      probe_before: squared norm of the input of a clipping stage, for ``probe``.
      probe_clipped: whether a clipping stage shortened something in this step, for ``probe``.
      own: facts of your own stages, by names of your choice. ``only`` and packing do not change
        them.
    """

    gradient: Tree | None = None
    skip_step: Tree | None = dataclasses.field(default=None, metadata=_FALSE)
    rectifier: jax.Array | None = None
    step_size: jax.Array | None = dataclasses.field(default=None, metadata=_ONE)
    parameter_scale: Tree | None = dataclasses.field(default=None, metadata=_ONE)
    leaf_scalars: Tree | None = None
    again: Callable[[Tree], Tree] | None = None
    delayed: bool = False
    decoded: bool = False
    probe_gradient: jax.Array | None = None
    probe_before: jax.Array | None = None
    probe_clipped: jax.Array | None = None
    own: dict[str, Any] = dataclasses.field(default_factory=dict)

    def trees(self) -> dict[str, Tree]:
        """Return the facts that are arrays, or trees of arrays, by field."""
        return {
            name: fact
            for name, fact in vars(self).items()
            if name != "own" and fact is not None and not isinstance(fact, bool | Callable)
        }


@dataclasses.dataclass
class Step:
    """The current step, as a stage sees it.

    Attributes:
      count: updates made before this one, int32.
      values: the hyperparameters of the stage at this step, by the names it declared.
      params: the parameters before the step, or None.
      extra: the extra arguments of ``update``.
      facts: messages from earlier stages of this step.
      in_sequence: whether leaves run one after the other, each after ``facts.leaf_scalars``.
    """

    count: jax.Array
    values: Mapping[str, jax.Array]
    params: Tree | None
    extra: Mapping[str, Any]
    facts: Facts = dataclasses.field(default_factory=Facts)
    in_sequence: bool = False

    def __getitem__(self, name: str) -> jax.Array:
        return self.values[name]

    def counted(self, count: jax.Array) -> jax.Array:
        """Return a count of a stage after this step, which stops when ``self.count`` does.

        Both are counted in one kernel, because the second reads the first.
        """
        return numerics.counted(count, self.count)


class Slopes(NamedTuple):
    """The factor 1 / P on the gradient in a stage without moments (``curvature.preconditioner``).

    Attributes:
      of: ``(gradient, memory, step) -> tree`` of factors on the gradient in the next step. Each
        broadcasts to its leaf of ``step.params``.
      needs_loss: whether the factors depend on the gradient and on the loss in ``step.extra``. If
        not, the gradient may be None.
    """

    of: Callable[[Any, Any, Step], Tree]
    needs_loss: bool


class Spec(NamedTuple):
    """The declaration of a stage."""

    name: str
    takes: Kind | None
    gives: Kind | None
    apply: Callable[[Any, Any, Step], tuple[Any, Any]]
    init: Callable[[Tree], Any] | None
    hyperparams: Mapping[str, Hyperparameter]
    needs_params: bool
    tail: bool
    storage: Any = None  # the ``Choice`` that encodes its state
    partial: bool = False  # whether ``only`` restricts it to some of the leaves
    slopes: Slopes | None = None  # for a stage that makes its direction without moments
    # ``(memory, direction, step) -> memory``: the same values, written only after the direction,
    # which reads the arrays that they overwrite (``sequential.after``).
    write_after_read: Callable[[Any, Tree, Step], Any] | None = None
    reduces: bool = False  # whether XLA computes a leaf as a whole before it can go on
    clips: bool = False  # whether it may shorten its input, which ``probe`` counts
    elementwise: bool = False  # on moments: each result from the same element, by leaves alike
    reads: str = ""  # on moments: "gradient" mixes the next one in, "prior" divides by the old v
    foreign: bool = False  # whether its state is made by a transformation of another library
    # ``params -> {column: tree of words}``: what it does with each leaf, for ``summary``. ``init``
    # calls it, so that patterns that do not fit the parameters raise there.
    settings: Callable[[Tree], Mapping[str, Tree]] | None = None
    options: Mapping[str, str] = types.MappingProxyType({})  # set by ``shows_options``
    weights: str = ""  # "averaged": it averages the parameters, "own": it evaluates other weights

    def around(self, apply: Any, init: Any, **changes: Any) -> Spec:
        """Declare a stage that wraps this one and has another state."""
        return self._replace(apply=apply, init=init, write_after_read=None, **changes)

    def __str__(self) -> str:
        """Return the name with hyperparameters and options, ``precondition(eps=1e-08)``."""
        shown = [*map(str, self.hyperparams.values()), *options_shown(self.options)]
        if self.storage is not None:
            shown.append("storage=...")
        if self.partial:
            shown.append("only=...")
        return f"{self.name}({', '.join(shown)})"

    @property
    def kinds(self) -> str:
        """``takes -> gives`` in words."""
        if self.takes is None or self.gives is None:
            return "any kind, kept"
        return f"{self.takes.value} -> {self.gives.value}"


class StageState(NamedTuple):
    """State of a stage that is used alone: its step count and its memory."""

    count: jax.Array
    memory: Any


class Declared(optax.GradientTransformationExtraArgs):
    """A transformation whose two functions carry a declaration.

    Copying, ``jax.tree.map`` and pickling by reference keep the functions, and so the declaration.
    With another ``init`` or ``update`` the declaration would be wrong: the result is then an
    ordinary optax transformation.
    """

    def __new__(cls, init: Any, update: Any) -> Any:
        """Make the transformation, an ordinary one if the functions carry no declaration."""
        declaration = getattr(update, "declaration", None)
        if declaration is None or declaration is not getattr(init, "declaration", None):
            return optax.GradientTransformationExtraArgs(init, update)
        return super().__new__(cls, init, update)

    @classmethod
    def of(cls, declaration: Any, init: Any, update: Any) -> Any:
        """Attach a declaration to two functions and make their transformation."""
        for function in (init, update):
            function.declaration = declaration
        return cls(init, update)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Any:  # ``_replace`` calls it
        return cls(*iterable)

    @property
    def declaration(self) -> Any:
        """The declaration that ``of`` attached."""
        return getattr(self.update, "declaration")  # noqa: B009


class Stage(Declared):
    """A ``GradientTransformationExtraArgs`` that also carries its declaration in ``spec``."""

    @property
    def spec(self) -> Spec:
        """The declaration."""
        return self.declaration

    def __repr__(self) -> str:
        """Show the name, the hyperparameters and the kinds."""
        return f"<stage {self.spec}: {self.spec.kinds}>"


def options_shown(options: Mapping[str, str]) -> list[str]:
    """Return ``name=value`` for each option."""
    return [f"{name}={value}" for name, value in options.items()]


RULE = "rule"
"""The column of ``Spec.settings`` that says which rule a leaf has, also if it is frozen."""


def stage(
    name: str,
    takes: Kind | None,
    gives: Kind | None,
    apply: Callable[[Any, Any, Step], tuple[Any, Any]],
    *,
    init: Callable[[Tree], Any] | None = None,
    hyperparams: Mapping[str, Hyperparameter] | None = None,
    needs_params: bool = False,
    slopes: Slopes | None = None,
    write_after_read: Callable[[Any, Tree, Step], Any] | None = None,
    reduces: bool = False,
    clips: bool = False,
    elementwise: bool = False,
    reads: str = "",
    settings: Callable[[Tree], Mapping[str, Tree]] | None = None,
    options: Mapping[str, str] = types.MappingProxyType({}),
    weights: str = "",
) -> Stage:
    """Declare a stage; ``init=None`` if it has no state, see ``Spec`` for the other arguments."""
    declared = hyperparams or {}
    spec = Spec(name, takes, gives, apply, init, declared, needs_params, name in TAILS)
    spec = spec._replace(write_after_read=write_after_read, slopes=slopes, settings=settings)
    spec = spec._replace(reduces=reduces, clips=clips, elementwise=elementwise, reads=reads)
    return stage_of(spec._replace(options=options, weights=weights))


TAILS: set[str] = set()
"""Names of the stages that ``tail`` declared."""


def tail(name: str) -> str:
    """Declare a tail: a stage whose state may come and go when a recipe is edited.

    Call it at the top of a module. Then ``migrate_state`` knows the name in a checkpoint, also in a
    program that does not build the stage any more.

    Args:
      name: name of the stage.

    Returns:
      The name, for ``stage``.
    """
    TAILS.add(name)
    return name


def stage_of(spec: Spec) -> Stage:
    """Make the transformation that runs a declared stage alone."""
    return Stage.of(spec, *_alone(spec))


def transformation(tx: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """Return ``tx`` with support for extra arguments; an ``optax.MultiSteps`` is accepted, too.

    Args:
      tx: the value of the argument.
      argument: the name of the argument, for the error.
    """
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"{argument} must be an optax transformation such as optax.adam(1e-3), got {tx!r}."
        )
    return optax.with_extra_args_support(tx)


def check_width(name: str, memory: Any, gradient: Tree) -> None:
    """Raise if scalars of a state have another float dtype than the present default.

    Args:
      name: owner of the state, for the error.
      memory: the state.
      gradient: the gradient; a state array of a scalar parameter may have any dtype.
    """
    if jax.tree.structure(gradient) == jax.tree.structure(0):
        return
    leaves = jax.tree_util.tree_leaves_with_path(memory)
    owned = dict(jax.tree_util.tree_leaves_with_path(gradient))
    for (_path, x), start in zip(
        leaves, numerics.owners_in([path for path, _ in leaves], owned), strict=True
    ):
        dtype = getattr(x, "dtype", None)
        if dtype is None or jnp.ndim(x) or not jnp.issubdtype(dtype, jnp.floating):
            continue
        if start is not None:
            continue
        if dtype != numerics.default_float():
            raise ValueError(
                f"the state of {name} was made for {dtype}, but scalars are now "
                f"{numerics.default_float()}: the state was cast, or jax_enable_x64 was switched. "
                "Convert the state of a recipe with migrate_state(saved, tx, params), or start "
                "again with tx.init(params)."
            )


def check_stored(spec: Spec, memory: Any) -> None:
    """Raise if a state is encoded, and its stage has no ``storage``."""
    if spec.storage is not None:
        return
    for path, node in jax.tree_util.tree_leaves_with_path(memory, is_leaf=is_encoded):
        if is_encoded(node):
            raise ValueError(
                f"the state of {spec.name} has {jax.tree_util.keystr(path)} stored as "
                f"{node.layout.name}, but the recipe has no storage=. Give the storage= or the "
                "quantize_state that wrote the state, or convert it with migrate_state(saved, tx, "
                "params), that of a stage alone with adamw_jax.storage.decode_state(state)."
            )


def require_params(spec_name: str, params: Tree | None) -> None:
    """Raise if a stage needs the parameters and did not get them."""
    if params is None:
        raise ValueError(
            f"{spec_name} needs the parameters, got params=None: call "
            "tx.update(gradients, state, params)."
        )


def _alone(spec: Spec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make ``init`` and ``update`` of a stage that is used alone."""

    def init_fn(params: Tree) -> StageState:
        make, params = spec.init, numerics.as_arrays(params)
        if spec.settings is not None:
            spec.settings(params)
        memory = optax.EmptyState() if make is None else make(params)
        return StageState(jnp.zeros([], jnp.int32), memory)

    def update_fn(updates: Any, state: StageState, params: Tree | None = None, **extra: Any):
        if spec.needs_params:
            require_params(spec.name, params)
        check_flow(spec, updates)
        record = updates if spec.takes is Kind.MOMENTS else None
        gradient, params = entering(updates if record is None else record.gradient, params)
        check_stored(spec, state.memory)
        check_width(spec.name, state.memory, gradient)
        values = {name: hyper.at(state.count) for name, hyper in spec.hyperparams.items()}
        step = Step(state.count, values, params, extra)
        with step_of(None, gradient, params), norms_of(spec.name), jax.named_scope(spec.name):
            flow, memory = spec.apply(gradient if record is None else record, state.memory, step)
        if spec.gives is not Kind.MOMENTS:
            flow = numerics.leaving(flow, gradient, params)
        memory = numerics.owned(memory, gradient, params, extra)
        return flow, StageState(numerics.increment(state.count), memory)

    return init_fn, update_fn


def check_flow(spec: Spec, flow: Any) -> None:
    """Raise if a stage got the moments record and must not, or needs it and did not get it."""
    is_record = getattr(type(flow), "is_moments_record", False)
    if spec.takes is Kind.MOMENTS and not is_record:
        raise TypeError(
            f"{spec.name} works on moments, got {type(flow).__name__}: put "
            "estimate_moments(first=..., second=...) before it, and precondition() only after it."
        )
    if spec.takes is not Kind.MOMENTS and is_record:
        raise TypeError(
            f"{spec.name} got the moments record: put precondition() before it, which turns "
            "moments into a direction."
        )
