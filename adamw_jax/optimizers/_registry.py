"""Keep one row per optimizer, for listing, creation, tables and shared tests.

>>> list_optimizers("adam*")
('adam', 'adamax', 'adamw')
>>> info("radam").arxiv
'1908.03265'
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, Unpack

import optax

from adamw_jax._core.checks import did_you_mean
from adamw_jax._core.compose import Composed, compose, composed_like
from adamw_jax._core.declare import LearningRate
from adamw_jax._core.options import Option, entry, full_signature
from adamw_jax._core.stage import Declared, Kind, Stage
from adamw_jax.optimizers._arguments import bound, unpacked
from adamw_jax.optimizers._common import (
    COMMON,
    RENAMED,
    AroundDirection,
    CommonOptions,
    check_decay,
    finish,
)
from adamw_jax.update import lookahead

Factory = Callable[..., Composed]
P = ParamSpec("P")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerInfo:
    """Facts about an optimizer.

    Attributes:
      name: name of the public function.
      factory: the public function.
      direction: its ``scale_by_...``, or None if the direction includes the learning rate.
      title: full name.
      equation: the step in one line; theta are the parameters, g the gradient, t counts from 1.
      citation: authors, title, venue, year.
      state_values: values of state per parameter, not counting scalars.
      arxiv: arXiv number, or empty.
      differs: how the default differs from optax and PyTorch, in words.
      twin: the optax function with the same step as ``factory`` with ``twin_options``, or empty.
      twin_options: keyword arguments of ``factory``.
      lacks: why it does not take the common keywords that it ``refuses``.
      example: values of the arguments that have no default, for tables and demonstrations.
      needs: required extra arguments of ``update``.
      degree: the step is proportional to this power of the gradient's scale, if eps is 0: 0 for
        Adam, 1 for SGD, None if there is no such power.
      scope: the gradients that the step of an element depends on: those of the ``"element"``, its
        ``"leaf"`` (norms), or the whole ``"tree"``.
      memory: the state in words, if ``state_values`` is only an upper bound.

    Example:
      >>> import adamw_jax as aj
      >>> about = aj.info("lion")
      >>> about.arxiv, about.state_values
      ('2302.06675', 1)
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
        """The size of the state, for a table."""
        return self.memory or f"{self.state_values} per parameter"

    @property
    def refuses(self) -> tuple[str, ...]:
        """The common keywords that it does not take."""
        taken = inspect.signature(self.factory).parameters
        return tuple(name for name in COMMON if name not in taken)


_REGISTRY: dict[str, OptimizerInfo] = {}


def register(
    *,
    direction: str | None = "",
    after_direction: tuple[str, ...] = (),
    in_direction: tuple[str, ...] = (),
    second_rate: str = "b2",
    no_momentum: str = "",
    corrects: Callable[[Mapping[str, Any]], bool] = lambda given: True,
    **facts: Any,
) -> Callable[[Callable[P, Composed]], Callable[P, Composed]]:
    """Register an optimizer, and complete its signature and docstring.

    The decorated function takes common keywords as ``**common: Unpack[...]``. The public function
    lists each of them, also for ``optax.inject_hyperparams``. If the learning rate is an object of
    several schedules, the decorated function gets each schedule as the argument that it is for.

    Args:
      direction: the optimizer with the same direction; empty for its own, None for no direction.
      after_direction: arguments of its own that act after the direction.
      in_direction: common keywords that are part of the direction here, but not in most optimizers.
      second_rate: the argument that takes a schedule of b2.
      no_momentum: what it has in place of a momentum, so that a schedule of one is refused.
      corrects: whether the optimizer corrects the bias of its moments, by the given arguments.
      **facts: fields of ``OptimizerInfo``.
    """

    def enter(factory: Callable[P, Composed]) -> Callable[P, Composed]:
        name, (signature, own_options) = factory.__name__, full_signature(factory)

        @functools.wraps(factory)
        def public(*args: P.args, **kwargs: P.kwargs) -> Composed:
            given = bound(name, signature, args, kwargs, lambda _: facts["lacks"])
            new = unpacked(name, signature, second_rate, given, no_momentum)
            carried = getattr(given.get("learning_rate"), "bias_correction", None)
            if carried and takes_correction(new):
                new.setdefault("bias_correction", carried)
            made = factory(**new)  # type: ignore[arg-type]
            check_decay(made, given.get("rules"))
            return made

        def takes_correction(given: Mapping[str, Any]) -> bool:
            return "bias_correction" in signature.parameters and corrects(given)

        public.__signature__ = signature  # type: ignore[attr-defined]
        scale_by = None
        if direction:
            scale_by = info(direction).direction
        elif direction is not None:
            kept = [
                parameter
                for key, parameter in signature.parameters.items()
                if key not in ("learning_rate", *after_direction)
                and (key not in COMMON or COMMON[key].in_direction or key in in_direction)
            ]
            scale_by = _direction_of(public, signature.replace(parameters=kept), facts)
            scale_by.corrects = takes_correction  # type: ignore[attr-defined]
        row = OptimizerInfo(name=name, factory=public, direction=scale_by, **facts)
        public.__doc__ = _docstring(row, {**COMMON, **own_options})
        _REGISTRY[name] = row
        return public

    return enter


def _direction_of(
    optimizer: Factory, signature: inspect.Signature, facts: dict[str, Any]
) -> Factory:
    """Make the optimizer's direction, the stages before the first that makes an update."""
    of = optimizer.__name__
    name, taken = f"scale_by_{of}", inspect.signature(optimizer).parameters
    plain = {
        key: COMMON[key].default
        for key in taken
        if key in COMMON and key not in signature.parameters
    }

    def why(key: str) -> str:
        return f"it acts after the direction, give it to {of}()" if key in taken else facts["lacks"]

    def scale_by(*args: Any, **kwargs: Any) -> Composed:
        given = bound(name, signature, args, kwargs, why)
        made = optimizer(learning_rate=1.0, **plain, **given)
        end = next(i for i, spec in enumerate(made.specs) if spec.gives is Kind.UPDATE)
        return composed_like(made, made.specs[:end])

    scale_by.__name__ = scale_by.__qualname__ = name
    scale_by.__module__ = "adamw_jax.optimizers._directions"
    scale_by.__signature__ = signature  # type: ignore[attr-defined]
    scale_by.__doc__ = (
        f"Return the direction of {facts['title']}, without the learning rate.\n\n"
        f"Arguments as for ``{of}``. Its ``update`` can be jitted alone.\n\n"
        "Example:\n"
        "  >>> import adamw_jax as aj\n"
        f"  >>> direction = aj.{name}()\n"
        "  >>> tx = aj.compose(direction, aj.scale_by_learning_rate(1e-3))"
    )
    return scale_by


def list_optimizers(pattern: str = "*") -> tuple[str, ...]:
    """Return the sorted names of the optimizers that match a pattern.

    Args:
      pattern: shell-style, such as ``"adam*"``.

    Returns:
      Names for ``info`` and ``create``; empty if nothing matches.

    Example:
      >>> import adamw_jax as aj
      >>> aj.list_optimizers("lam*")
      ('lamb',)
    """
    return tuple(sorted(name for name in _REGISTRY if fnmatch.fnmatchcase(name, pattern)))


def info(name: str) -> OptimizerInfo:
    """Return the facts about an optimizer.

    Args:
      name: one of ``list_optimizers()``.

    Returns:
      Its facts, including the function itself.

    Raises:
      ValueError: there is no optimizer of that name.

    Example:
      >>> import adamw_jax as aj
      >>> aj.info("radam").arxiv
      '1908.03265'
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be that of an optimizer, such as 'adamw', got {name!r}.")
    if name not in _REGISTRY:
        hint = did_you_mean_optimizer(name, _REGISTRY) or "."
        raise ValueError(f"unknown optimizer {name!r}: give one of {list_optimizers()}{hint}")
    return _REGISTRY[name]


def did_you_mean_optimizer(name: str, known: Collection[str]) -> str:
    """Return a hint at the nearest name, and at the optimizer of optax with this name."""
    word = name.lower()
    hint = did_you_mean(RENAMED.get(word, word), known)
    for module in () if word in known else (optax, optax.contrib):
        made = getattr(module, word, None)
        if callable(made) and "learning_rate" in inspect.signature(made).parameters:
            hint = f"{hint or ';'} From optax: as_optimizer({module.__name__}.{word}(...))."
    return hint


def create(name: str | Declared, learning_rate: Any, **options: Any) -> Any:
    """Make an optimizer by name or from a direction; ``lookahead_`` before a name adds Lookahead.

    Args:
      name: a name of ``list_optimizers()``, or ``lookahead_`` and such a name. Or a direction: a
        recipe or stage of this library, or ``as_direction(tx)`` of an optax transformation.
      learning_rate: as for the optimizer.
      **options: keyword arguments of the optimizer, and with the prefix also ``sync_period``,
        ``slow_step_size`` and ``inner_state`` of ``lookahead``. A direction takes
        ``weight_decay``, ``mask``, ``decay``, ``base_learning_rate``, ``l2``, ``rules`` and
        ``storage``, with the meaning that they have in ``sgdw``.

    Returns:
      A ``Composed`` recipe; with ``inner_state``, ``lookahead(...)`` around one.

    Raises:
      ValueError: there is no optimizer of that name.
      TypeError: it does not have such an argument, or ``name`` is neither a name nor a direction.

    >>> import jax.numpy as jnp
    >>> sorted(create("lookahead_radam", 1e-3, sync_period=6).init(jnp.zeros(2)).stages)
    ['estimate_moments', 'lookahead']
    >>> from adamw_jax import as_direction
    >>> tx = create(as_direction(optax.scale_by_lion()), 1e-4, weight_decay=0.1)
    >>> [spec.name for spec in tx.specs]
    ['scale_by_lion', 'decoupled_decay', 'scale_by_learning_rate']
    """
    if not isinstance(name, str):
        return _from_direction(name, learning_rate, options)
    inner = name.removeprefix("lookahead_")
    if inner == name:
        return info(name).factory(learning_rate, **options)
    names = ("sync_period", "slow_step_size", "inner_state")
    given = {name: options.pop(name) for name in names if name in options}
    made = info(inner).factory(learning_rate, **options)
    if "inner_state" in given:
        return lookahead(made, **given)
    return compose(made, lookahead(**given))


def _from_direction(direction: Any, learning_rate: Any, options: dict[str, Any]) -> Composed:
    specs = compose(direction).specs if isinstance(direction, Composed | Stage) else ()
    if not specs or specs[-1].gives is not Kind.DIRECTION:
        raise TypeError(
            "create() takes the name of an optimizer or a direction of adamw_jax, got "
            f"{direction!r}: write as_direction(...) around an optax transformation such as "
            "optax.scale_by_lion(), or as_direction(optax.lion(1.0), negate=True) around an "
            "optimizer."
        )

    if "cautious" in options:
        raise TypeError(
            "create() does not take cautious for a direction: put the stage behind it, "
            "create(compose(direction, adamw_jax.cautious()), learning_rate)."
        )

    def optimizer(learning_rate: LearningRate, **common: Unpack[AroundDirection]) -> Composed:
        made = finish(CommonOptions(common), learning_rate, direction)
        check_decay(made, common.get("rules"))
        return made

    signature, _ = full_signature(optimizer)
    lacks = "the direction is made already"
    inside = "cannot schedule the momentum inside a direction"
    given = {"learning_rate": learning_rate, **options}
    given = bound("create", signature, (), given, lambda _: lacks)
    return optimizer(**unpacked("create", signature, "b2", given, inside))


def _docstring(row: OptimizerInfo, options: Mapping[str, Option]) -> str:
    """Return the docstring with equation, common keywords, differences and reference."""
    summary, _, rest = inspect.cleandoc(row.factory.__doc__ or "").partition("\n\n")
    args, marker, after = rest.partition("\nReturns:")
    described = re.findall(r"^  (\w+):", args, re.MULTILINE)
    known = inspect.signature(row.factory).parameters
    shared = [entry(key, options[key]) for key in known if key in options and key not in described]
    args = "\n".join([args.rstrip(), *shared, marker + after])
    parts = [summary, f"    {row.equation}", args]
    if row.differs:
        parts.append(f"Differs: {row.differs}")
    where = f", arXiv {row.arxiv}" if row.arxiv else ""
    parts.append(f"Reference: {row.citation}{where}.")
    given = "".join(f", {key}={value!r}" for key, value in row.example.items())
    extra = "".join(f", {name}=0.5" for name in row.needs)
    parts.append(EXAMPLE.format(call=f"{row.name}(1e-3{given})", extra=extra))
    return "\n\n".join(part.strip("\n") for part in parts)


EXAMPLE = """Example:
  >>> import jax.numpy as jnp, optax, adamw_jax as aj
  >>> params, gradient = {{"w": jnp.ones(3)}}, {{"w": jnp.full(3, 0.5)}}
  >>> tx = aj.{call}
  >>> state = tx.init(params)
  >>> updates, state = tx.update(gradient, state, params{extra})
  >>> params = optax.apply_updates(params, updates)"""
