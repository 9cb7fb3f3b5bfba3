"""The stage: one step of a recipe, and a plain optax transformation at the same time.

Four kinds of value flow through a recipe::

    gradient -> moments -> direction (unscaled step) -> update (ready for apply_updates)

A stage declares what it takes and gives, its hyperparameters by name, and two pure functions:
``init(params)`` for its state, and ``apply(flow, state, step)`` for one step. ``compose`` runs
stages with one step count and one record of hyperparameters; alone, in ``optax.chain``, a stage
counts its own steps and evaluates its own hyperparameters.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax._core import numerics
from adamw_jax._core.declare import Hyperparameter
from adamw_jax._core.gradients import entering, norms_of, step_of

Tree = Any


class Kind(enum.Enum):
    """What flows between two stages."""

    GRADIENT = "gradient"
    MOMENTS = "moments"
    DIRECTION = "direction"
    UPDATE = "update"


@dataclasses.dataclass
class Facts:
    """What stages tell the later stages of the same step; a stage sets a field, others read it.

    Attributes:
      skip_step: where true, this step moves nothing and decays nothing; a bool array, or one for
        every leaf. None if no stage said so.
      step_size: the factor on the gradient in this step, a scalar, from a stage that estimates it.
      parameter_scale: the factor of each leaf by which the step was scaled.
      leaf_scalars: for some leaves or all a scalar that is known only after the whole direction of
        the leaf was computed; ``sequential`` starts the next leaf after it.
      delayed: whether the direction reads the second moment of the step before.
      decoded: whether the recipe has decoded the state of its stages.
      unpacked: the gradient before it was packed.
      probe_gradient: squared norm of the gradient, for ``probe``.
      probe_before: squared norm of what a clipping was given, for ``probe``.
      probe_clipped: whether a clipping shortened something in this step, for ``probe``.
      own: facts of your own stages, by names of your choice. They pass ``only`` and packing as
        they are.
    """

    skip_step: Tree | None = None
    step_size: jax.Array | None = None
    parameter_scale: Tree | None = None
    leaf_scalars: Tree | None = None
    delayed: bool = False
    decoded: bool = False
    unpacked: Tree | None = None
    probe_gradient: jax.Array | None = None
    probe_before: jax.Array | None = None
    probe_clipped: jax.Array | None = None
    own: dict[str, Any] = dataclasses.field(default_factory=dict)

    def trees(self) -> dict[str, Tree]:
        """The facts that are arrays, or trees of arrays, by field."""
        return {
            name: told
            for name, told in vars(self).items()
            if name != "own" and told is not None and not isinstance(told, bool)
        }


@dataclasses.dataclass
class Step:
    """What a stage may know of the current step.

    Attributes:
      count: updates made before this one, int32.
      values: the stage's hyperparameters at this step, by the stage's own names.
      params: the parameters before the step, or None.
      extra: the extra arguments of ``update``.
      facts: what earlier stages of this step have told.
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


class Slopes(NamedTuple):
    """1 / P of a stage that makes its direction without moments, for ``curvature.preconditioner``.

    Attributes:
      of: ``(gradient, memory, step) -> tree``, what multiplies the gradient in the step to come,
        leaf by leaf an array that broadcasts to the leaf of ``step.params``.
      needs_loss: whether that depends on the gradient, and on the loss in ``step.extra``; without,
        the gradient may be None.
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
    storage: Any = None  # the ``Choice`` by which its memory is encoded
    partial: bool = False  # whether ``only`` keeps it to some of the leaves
    slopes: Slopes | None = None  # of one that makes its direction without moments
    # ``(memory, direction, step) -> memory``, the same values, written only after the direction,
    # which reads what they overwrite (``sequential.after``).
    write_after_read: Callable[[Any, Tree, Step], Any] | None = None
    reduces: bool = False  # whether it reduces over a whole leaf before the result can be used
    clips: bool = False  # whether it may shorten what it is given, which ``probe`` counts
    reads: str = ""  # on moments: "gradient" mixes the next one in, "prior" divides by the last v

    def around(self, apply: Any, init: Any, **changes: Any) -> Spec:
        """Declares a stage that wraps this one, whose state is another."""
        return self._replace(apply=apply, init=init, write_after_read=None, **changes)

    @property
    def kinds(self) -> str:
        """``takes -> gives`` in words."""
        if self.takes is None or self.gives is None:
            return "any kind, kept"
        return f"{self.takes.value} -> {self.gives.value}"


class StageState(NamedTuple):
    """State of a stage used alone: its own step count, and what it remembers."""

    count: jax.Array
    memory: Any


class Declared(optax.GradientTransformationExtraArgs):
    """A transformation whose two functions carry a declaration.

    A copy, ``jax.tree.map`` or pickling by reference keep the functions, and so the declaration.
    With another ``init`` or ``update`` it would tell of something else: then what is made is an
    ordinary optax transformation.
    """

    def __new__(cls, init: Any, update: Any) -> Any:
        """The transformation of two functions."""
        declaration = getattr(update, "declaration", None)
        if declaration is None or declaration is not getattr(init, "declaration", None):
            return optax.GradientTransformationExtraArgs(init, update)
        return super().__new__(cls, init, update)

    @classmethod
    def of(cls, declaration: Any, init: Any, update: Any) -> Any:
        """The transformation of two functions and the declaration that they are to carry."""
        for function in (init, update):
            function.declaration = declaration
        return cls(init, update)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Any:  # that of ``_replace``
        return cls(*iterable)

    @property
    def declaration(self) -> Any:
        """What ``of`` was given."""
        return getattr(self.update, "declaration")  # noqa: B009


class Stage(Declared):
    """A ``GradientTransformationExtraArgs`` that also carries its declaration in ``spec``."""

    @property
    def spec(self) -> Spec:
        """The declaration."""
        return self.declaration


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
    reads: str = "",
) -> Stage:
    """Declares a stage; ``init`` is None for one without memory, see ``Spec`` for the rest."""
    declared = hyperparams or {}
    spec = Spec(name, takes, gives, apply, init, declared, needs_params, name in TAILS)
    spec = spec._replace(write_after_read=write_after_read, slopes=slopes)
    return stage_of(spec._replace(reduces=reduces, clips=clips, reads=reads))


TAILS: set[str] = set()
"""Names of the stages that ``tail`` declared."""


def tail(name: str) -> str:
    """Declares that the state of a stage may come and go when a recipe is edited.

    Call it where a module begins, so that ``migrate_state`` knows the name in a checkpoint of a
    program that does not build the stage any more.

    Args:
      name: of the stage.

    Returns:
      The name, for ``stage``.
    """
    TAILS.add(name)
    return name


def stage_of(spec: Spec) -> Stage:
    """The transformation that runs a declared stage alone."""
    return Stage.of(spec, *_alone(spec))


def transformation(tx: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """What a user gave for an optax transformation; ``optax.MultiSteps(...)`` is one, too.

    Args:
      tx: what was given.
      argument: what the user calls it, for the error.

    Raises:
      TypeError: it is none.
    """
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"{argument} must be an optax transformation such as optax.adam(1e-3), got {tx!r}."
        )
    return optax.with_extra_args_support(tx)


def check_width(name: str, memory: Any, gradient: Tree) -> None:
    """Raises where the scalars of a state were made for floats of another width.

    Args:
      name: whose state it is, for the error.
      memory: the state.
      gradient: what it was given, whose leaves may be scalars that are stored otherwise.

    Raises:
      ValueError: they were.
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
                f"the state of {name} was made for {dtype}, and scalars are "
                f"{numerics.default_float()} now: the state was cast, or jax_enable_x64 was "
                "switched. Carry a recipe's state over with migrate_state(saved, tx, params), or "
                "start with tx.init(params)."
            )


def require_params(spec_name: str, params: Tree | None) -> None:
    """Raises the error for a stage that needs the parameters and did not get them."""
    if params is None:
        raise ValueError(
            f"{spec_name} needs the parameters, got params=None: call "
            "tx.update(gradients, state, params)."
        )


def increment(count: jax.Array) -> jax.Array:
    """``count + 1``, staying at the largest int32 instead of wrapping."""
    return jnp.asarray(optax.safe_increment(count))


def _alone(spec: Spec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Init and update of a stage that nobody composes."""

    def init_fn(params: Tree) -> StageState:
        params = numerics.as_arrays(params)
        memory = optax.EmptyState() if spec.init is None else spec.init(params)
        return StageState(jnp.zeros([], jnp.int32), memory)

    def update_fn(updates: Any, state: StageState, params: Tree | None = None, **extra: Any):
        if spec.needs_params:
            require_params(spec.name, params)
        check_flow(spec, updates)
        record = updates if spec.takes is Kind.MOMENTS else None
        gradient, params = entering(updates if record is None else record.gradient, params)
        check_width(spec.name, state.memory, gradient)
        values = {name: hyper.at(state.count) for name, hyper in spec.hyperparams.items()}
        step = Step(state.count, values, params, extra)
        with step_of(None, gradient, params), norms_of(spec.name), jax.named_scope(spec.name):
            flow, memory = spec.apply(gradient if record is None else record, state.memory, step)
        if spec.gives is not Kind.MOMENTS:
            flow = numerics.leaving(flow, gradient, params)
        return flow, StageState(increment(state.count), memory)

    return init_fn, update_fn


def check_flow(spec: Spec, flow: Any) -> None:
    """Raises where the moments record arrives at, or fails to arrive at, a stage."""
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
