"""The registry: one row per optimizer, which drives listing, creation, tables and shared tests.

>>> list_optimizers("adam*")
('adam', 'adamax', 'adamw')
>>> info("radam").arxiv
'1908.03265'
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import optax

from adamw_jax._core.checks import one_of, switch
from adamw_jax._core.compose import Composed, compose, composed_like
from adamw_jax._core.options import Option, entry, full_signature
from adamw_jax._core.stage import Kind
from adamw_jax.moments._correct_bias import CONVENTIONS
from adamw_jax.optimizers._common import COMMON, RENAMED
from adamw_jax.update import lookahead

Factory = Callable[..., Composed]
P = ParamSpec("P")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerInfo:
    """What the library knows of an optimizer.

    Attributes:
      name: the public function's name.
      factory: the optimizer.
      direction: its ``scale_by_...``, or None where the learning rate is part of the direction.
      title: full name.
      equation: the step in one line; theta are the parameters, g the gradient, t counts from 1.
      citation: authors, title, venue, year.
      state_values: values of state per parameter, scalars aside.
      arxiv: arXiv number, or empty.
      differs: how the default differs from optax and PyTorch, in words.
      twin: the optax function with the same step under ``twin_options``, or empty.
      twin_options: keyword arguments of ours that make the step equal the twin's.
      lacks: why it does not take the common keywords that it ``refuses``.
      example: values of the arguments that have no default, for tables and demonstrations.
      needs: extra arguments of ``update`` that it cannot do without.
      degree: the power of the gradient's scale that the step goes with, eps aside: 0 for Adam, 1
        for SGD, None where it is no power.
      scope: what a step looks at to move an element: the ``"element"``, its ``"leaf"`` (norms), or
        the whole ``"tree"``.
      memory: the state in words, where ``state_values`` is only its upper bound.
    """

    name: str
    factory: Factory
    direction: Factory | None
    title: str
    equation: str
    citation: str
    state_values: int
    arxiv: str = ""
    differs: str = ""
    twin: str = ""
    twin_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lacks: str = ""
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    degree: float | None = 0
    scope: str = "element"
    memory: str = ""

    @property
    def state(self) -> str:
        """How much state there is, for a table."""
        return self.memory or f"{self.state_values} per parameter"

    @property
    def refuses(self) -> tuple[str, ...]:
        """The common keywords that have no meaning for it."""
        taken = inspect.signature(self.factory).parameters
        return tuple(name for name in COMMON if name not in taken)


_REGISTRY: dict[str, OptimizerInfo] = {}

_RAISES = """\
Raises:
  ValueError: a value is out of its range or does not go with the others, or (in ``update``)
    parameters are needed and not given, or the gradients do not fit the state.
  TypeError: an argument is unknown or of the wrong kind, or a leaf is not floating-point.
"""


def register(
    *,
    direction: str | None = "",
    behind: tuple[str, ...] = (),
    within: tuple[str, ...] = (),
    second_rate: str = "b2",
    **facts: Any,
) -> Callable[[Callable[P, Composed]], Callable[P, Composed]]:
    """Enters an optimizer into the registry and completes its signature and docstring.

    The decorated function takes common keywords as ``**common: Unpack[...]``; the function that
    users see lists them one by one, which is also what ``optax.inject_hyperparams`` reads. Where
    the learning rate is an object with several schedules, the decorated function gets each of them
    in its place, and a plain learning rate.

    Args:
      direction: the optimizer whose direction it has; its own by default, None for no direction.
      behind: arguments of its own that act behind the direction.
      within: common keywords that act within it, though most optimizers have them behind.
      second_rate: the argument that a schedule of b2 drives.
      **facts: fields of ``OptimizerInfo``.
    """

    def enter(factory: Callable[P, Composed]) -> Callable[P, Composed]:
        name, (signature, own_options) = factory.__name__, full_signature(factory)

        @functools.wraps(factory)
        def public(*args: P.args, **kwargs: P.kwargs) -> Composed:
            given = _bound(name, signature, args, kwargs, lambda _: facts["lacks"])
            return factory(**_unpacked(name, signature, second_rate, given))  # type: ignore[arg-type]

        public.__signature__ = signature  # type: ignore[attr-defined]
        scale_by = None
        if direction:
            scale_by = info(direction).direction
        elif direction is not None:
            kept = [
                parameter
                for key, parameter in signature.parameters.items()
                if key not in ("learning_rate", *behind)
                and (key not in COMMON or COMMON[key].in_direction or key in within)
            ]
            scale_by = _direction_of(public, signature.replace(parameters=kept), facts)
        row = OptimizerInfo(name=name, factory=public, direction=scale_by, **facts)
        public.__doc__ = _docstring(row, {**COMMON, **own_options})
        _REGISTRY[name] = row
        return public

    return enter


def _direction_of(
    optimizer: Factory, signature: inspect.Signature, facts: dict[str, Any]
) -> Factory:
    """The optimizer up to its learning rate: the stages before the first that gives an update."""
    of = optimizer.__name__
    name, taken = f"scale_by_{of}", inspect.signature(optimizer).parameters
    plain = {
        key: COMMON[key].default
        for key in taken
        if key in COMMON and key not in signature.parameters
    }

    def why(key: str) -> str:
        return f"it acts behind the direction, {of}() takes it" if key in taken else facts["lacks"]

    def scale_by(*args: Any, **kwargs: Any) -> Composed:
        given = _bound(name, signature, args, kwargs, why)
        if given.get("rules") is not None:
            given["rules"] = given["rules"].of_decay()
        made = optimizer(learning_rate=1.0, **plain, **given)
        end = next(i for i, spec in enumerate(made.specs) if spec.gives is Kind.UPDATE)
        return composed_like(made, made.specs[:end])

    scale_by.__name__ = scale_by.__qualname__ = name
    scale_by.__module__ = "adamw_jax.optimizers._directions"
    scale_by.__signature__ = signature  # type: ignore[attr-defined]
    scale_by.__doc__ = (
        f"{facts['title']}'s direction, without learning rate: gradient in, direction out.\n\n"
        f"Arguments as for ``{of}``. It can be jitted alone."
    )
    return scale_by


def list_optimizers(pattern: str = "*") -> tuple[str, ...]:
    """Names of the optimizers that fit a pattern, sorted.

    Args:
      pattern: in the style of a shell, ``"adam*"``.

    Returns:
      Names for ``info`` and ``create``; none if nothing fits.
    """
    return tuple(sorted(name for name in _REGISTRY if fnmatch.fnmatchcase(name, pattern)))


def info(name: str) -> OptimizerInfo:
    """The registry's row for an optimizer.

    Args:
      name: one of ``list_optimizers()``.

    Returns:
      What the library knows of it, the function itself among it.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown optimizer {name!r}; there are {list_optimizers()}{hint}")
    return _REGISTRY[name]


def create(name: str, learning_rate: Any, **options: Any) -> Any:
    """An optimizer by name; the prefix ``lookahead_`` adds Lookahead at its end.

    Args:
      name: a name of ``list_optimizers()``, or ``lookahead_`` and such a name.
      learning_rate: as for the optimizer.
      **options: keyword arguments of the optimizer, and with the prefix also ``sync_period``,
        ``slow_step_size`` and ``inner_state`` of ``lookahead``.

    Returns:
      A ``Composed`` recipe; with ``inner_state``, ``lookahead(...)`` around one.

    Raises:
      ValueError: there is no optimizer of that name, or as the optimizer says.
      TypeError: it has no such argument.

    >>> import jax.numpy as jnp
    >>> sorted(create("lookahead_radam", 1e-3, sync_period=6).init(jnp.zeros(2)).stages)
    ['estimate_moments', 'lookahead']
    """
    inner = name.removeprefix("lookahead_")
    if inner == name:
        return info(name).factory(learning_rate, **options)
    names = ("sync_period", "slow_step_size", "inner_state")
    given = {name: options.pop(name) for name in names if name in options}
    made = info(inner).factory(learning_rate, **options)
    if "inner_state" in given:
        return lookahead(made, **given)
    return compose(made, lookahead(**given))


def _bound(
    name: str, signature: inspect.Signature, args: Any, kwargs: Any, why_not: Callable[[str], str]
) -> dict[str, Any]:
    """The arguments by name, or the error for one that is unknown or not among its choices."""
    known = signature.parameters
    for key in kwargs:
        if key in known:
            continue
        if key in COMMON:
            raise TypeError(f"{name}() takes no {key}: {why_not(key)}.")
        near = [RENAMED[key]] if key in RENAMED else difflib.get_close_matches(key, known, n=1)
        near = [word for word in near if word in known]
        hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {sorted(known)}."
        raise TypeError(f"{name}() has no argument {key!r}{hint}")
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None
    for key, value in given.items():
        if known[key].annotation == "bool":
            switch(key, value)
        if key == "bias_correction":
            one_of(key, value, CONVENTIONS)
    return given


def _unpacked(
    name: str, signature: inspect.Signature, second_rate: str, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments, with the schedules that the learning rate carries in their places.

    ``one_cycle``, ``phases`` and ``warm_restarts`` give objects with ``learning_rate`` and some of
    ``momentum``, ``b2``, ``weight_decay`` and ``l2``. A momentum of None, no buffer, stays None.
    """
    carrier: Any = given.get("learning_rate")
    if isinstance(carrier, optax.GradientTransformation):
        raise TypeError(
            f"learning_rate must be a number, a schedule, or an object such as one_cycle(...), got "
            f"the transformation {carrier!r}."
        )
    if not hasattr(carrier, "learning_rate"):
        return given
    known, new = signature.parameters, {**given, "learning_rate": carrier.learning_rate}
    takes = {"b1": "momentum", "momentum": "momentum", second_rate: "b2"}
    for key, field in {**takes, "weight_decay": "weight_decay", "l2": "l2"}.items():
        carried = getattr(carrier, field, None)
        if carried is None or (key not in known and key in takes):
            continue
        if key not in known:
            raise ValueError(f"{name}() takes no {key}, which {type(carrier).__name__} brings.")
        default = known[key].default
        value = given.get(key, default)
        if value is not carried and isinstance(value, (int, float)) and value != default:
            # Without a default there would be no buffer that the carried momentum could drive.
            remedy = f"leave {key} out" if default is not None else f"give {key}=that.{field}"
            raise ValueError(
                f"{name}() got {key}={value!r}, but {type(carrier).__name__} brings its own "
                f"{field}: {remedy}, or build the schedules without {field}."
            )
        if value is not None or key not in takes:
            new[key] = carried
    if getattr(carrier, "l2", None) is not None and getattr(carrier, "weight_decay", None) is None:
        new["weight_decay"] = None  # a plan that decays by L2 does not decay twice
    if "base_learning_rate" in known and new.get("base_learning_rate") is None:
        bases = (getattr(carrier, f"{word}_learning_rate", None) for word in ("base", "max"))
        new["base_learning_rate"] = next((base for base in bases if base is not None), None)
    return new


def _docstring(row: OptimizerInfo, options: Mapping[str, Option]) -> str:
    """The docstring with equation, common keywords, differences and reference."""
    summary, _, rest = inspect.cleandoc(row.factory.__doc__ or "").partition("\n\n")
    args, marker, after = rest.partition("\nReturns:")
    told = re.findall(r"^  (\w+):", args, re.MULTILINE)
    known = inspect.signature(row.factory).parameters
    shared = [entry(key, options[key]) for key in known if key in options and key not in told]
    if "Raises:" not in after:
        after = after.rstrip() + "\n\n" + _RAISES
    args = "\n".join([args.rstrip(), *shared, marker + after])
    parts = [summary, f"    {row.equation}", args]
    if row.differs:
        parts.append(f"Differs: {row.differs}")
    where = f", arXiv {row.arxiv}" if row.arxiv else ""
    parts.append(f"Reference: {row.citation}{where}.")
    return "\n\n".join(part.strip("\n") for part in parts)
