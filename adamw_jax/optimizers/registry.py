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
from collections.abc import Callable
from typing import Any

from adamw_jax.averaging.lookahead import lookahead
from adamw_jax.compose import Composed, compose
from adamw_jax.optimizers.common import COMMON, COMMON_DOC, RENAMED, check_switches

Factory = Callable[..., Composed]


@dataclasses.dataclass(frozen=True)
class OptimizerInfo:
    """What the library knows of an optimizer.

    Attributes:
      name: the public function's name.
      title: full name.
      equation: the step in one line; theta are the parameters, g the gradient, t counts from 1.
      citation: authors, title, venue, year.
      arxiv: arXiv number, or empty.
      state_values: values of state per parameter, scalars aside.
      differs: how the default differs from optax and PyTorch, in words.
      twin: the optax function with the same step under ``twin_options``, or empty.
      twin_options: keyword arguments of ours that make the step equal the twin's.
      refuses: common keywords that have no meaning for it and must keep their defaults.
      example: values of the arguments that have no default, for tables and demonstrations.
      needs: extra arguments of ``update`` that it cannot do without.
      degree: the power of the gradient's scale that the step goes with, eps aside: 0 for Adam, 1
        for SGD, None where it is no power.
      scope: what a step looks at to move an element: the ``"element"``, its ``"leaf"`` (norms), or
        the whole ``"tree"``.
      factory: the optimizer.
      direction: its ``scale_by_...``, or None where the learning rate is part of the direction.
      memory: the state in words, where ``state_values`` is only its upper bound.
    """

    name: str
    title: str
    equation: str
    citation: str
    arxiv: str
    state_values: int
    differs: str
    twin: str
    twin_options: dict[str, Any]
    refuses: tuple[str, ...]
    example: dict[str, Any]
    needs: tuple[str, ...]
    degree: float | None
    scope: str
    factory: Factory
    direction: Factory | None
    memory: str = ""

    @property
    def state(self) -> str:
        """How much state there is, for a table."""
        return self.memory or f"{self.state_values} per parameter"


_REGISTRY: dict[str, OptimizerInfo] = {}

CARRIED = ("momentum", "b2", "weight_decay", "l2")
"""What an object given as learning rate may bring besides the learning rate."""

_RAISES = """\
Raises:
  ValueError: a value is out of its range or does not go with the others, or (in ``update``)
    parameters are needed and not given, or the gradients do not fit the state.
  TypeError: an argument is unknown or of the wrong kind, or a leaf is not floating-point.
"""


def register(
    *,
    title: str,
    equation: str,
    citation: str,
    direction: Factory | None,
    state_values: int,
    arxiv: str = "",
    differs: str = "",
    twin: str = "",
    twin_options: dict[str, Any] | None = None,
    refuses: tuple[str, ...] = (),
    example: dict[str, Any] | None = None,
    needs: tuple[str, ...] = (),
    degree: float | None = 0,
    scope: str = "element",
    memory: str = "",
) -> Callable[[Factory], Factory]:
    """Enters an optimizer into the registry and completes its signature and docstring.

    The decorated function takes the common keywords as ``**common``; the function that users see
    lists them one by one, which is also what ``optax.inject_hyperparams`` reads.
    """

    def enter(factory: Factory) -> Factory:
        signature = inspect.signature(factory)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {p.name for p in own}
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in COMMON.items()
            if name not in known
        ]

        @functools.wraps(factory)
        def public(*args: Any, **kwargs: Any) -> Composed:
            _check_keywords(factory.__name__, kwargs, known)
            check_switches(kwargs)
            _check_carried(factory.__name__, signature, args, kwargs)
            made = factory(*args, **kwargs)  # which may say better why it refuses something
            _check_refused(factory.__name__, refuses, kwargs)
            return made

        public.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
        public.__doc__ = _docstring(factory, equation, citation, arxiv, differs, refuses)
        _REGISTRY[factory.__name__] = OptimizerInfo(
            factory.__name__, title, equation, citation, arxiv, state_values, differs,
            twin, twin_options or {}, refuses, example or {}, needs, degree, scope, public,
            direction, memory,
        )  # fmt: skip
        return public

    return enter


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


def _check_keywords(name: str, kwargs: dict[str, Any], known: set[str]) -> None:
    allowed = known | set(COMMON)
    for key in kwargs:
        if key in allowed:
            continue
        near = [RENAMED[key]] if key in RENAMED else difflib.get_close_matches(key, allowed, n=1)
        near = [word for word in near if word in allowed]
        hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {sorted(allowed)}."
        raise TypeError(f"{name}() has no argument {key!r}{hint}")


def _check_refused(name: str, refuses: tuple[str, ...], kwargs: dict[str, Any]) -> None:
    """What has no meaning for an optimizer must keep its default."""
    for option in refuses:
        if option in kwargs and kwargs[option] != COMMON[option]:
            raise ValueError(
                f"{name}() has nothing that {option}={kwargs[option]!r} could act on: leave "
                f"{option} out."
            )


def _check_carried(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """A value that the user gave beside an object that carries its schedule would be lost."""
    given = signature.bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("common", {})}
    carrier = given.get("learning_rate")
    if not hasattr(carrier, "learning_rate"):
        return
    for key, value in given.items():
        field = "momentum" if key == "b1" else key
        carried = getattr(carrier, field, None) if field in CARRIED else None
        if carried is None or value is carried or not isinstance(value, (int, float)):
            continue
        parameter = signature.parameters.get(key)
        default = COMMON.get(key) if parameter is None else parameter.default
        if value != default:
            # Without a default there would be no buffer that the carried momentum could drive.
            remedy = f"leave {key} out" if default is not None else f"give {key}=that.{field}"
            raise ValueError(
                f"{name}() got {key}={value!r}, but {type(carrier).__name__} brings its own "
                f"{field}: {remedy}, or build the schedules without {field}."
            )


def _docstring(
    factory: Factory,
    equation: str,
    citation: str,
    arxiv: str,
    differs: str,
    refuses: tuple[str, ...],
) -> str:
    text = inspect.cleandoc(factory.__doc__ or "")
    summary, _, rest = text.partition("\n\n")
    args, marker, after = rest.partition("\nReturns:")
    where = f", arXiv {arxiv}" if arxiv else ""
    hidden = {*refuses, *inspect.signature(factory).parameters}
    shared = "".join(line for name, line in COMMON_DOC.items() if name not in hidden)
    if "Raises:" not in after:
        after = after.rstrip() + "\n\n" + _RAISES
    parts = [summary, f"    {equation}", args.rstrip() + "\n" + shared + marker + after]
    if differs:
        parts.append(f"Differs: {differs}")
    parts.append(f"Reference: {citation}{where}.")
    return "\n\n".join(part.strip("\n") for part in parts)
