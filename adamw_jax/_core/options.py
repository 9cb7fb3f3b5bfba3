"""Options: keywords that several functions share, and what ``repr`` of a recipe shows of them.

A ``TypedDict`` declares shared keywords, each with type, default and description in one place. A
function takes them with ``**options: Unpack[...]``, and type checkers see each of them.

>>> from adamw_jax.optimizers._common import Moments
>>> filled(Moments, {"amsgrad": True})
{'amsgrad': True, 'rectify': False, 'eps_hat': False, 'bias_correction': 'exact'}
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast, get_type_hints

import numpy as np

from adamw_jax._core.stage import Stage, stage_of

P = ParamSpec("P")
T = TypeVar("T")


class Option(NamedTuple):
    """Default and description of a keyword.

    Attributes:
      default: the default value.
      text: the description, for docstrings.
      in_direction: for a keyword of an optimizer ``x``, whether ``scale_by_x`` takes it, too.
    """

    default: Any
    text: str
    in_direction: bool = False


def options_of(kind: Any) -> dict[str, Option]:
    """Read the keywords of a ``TypedDict`` with fields ``Annotated[type, Option(...)]``."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def filled(kind: Any, given: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return all keywords of a ``TypedDict`` by name, with defaults for those not given."""
    defaults = {name: option.default for name, option in options_of(kind).items()}
    if unknown := sorted({*given, *own} - {*defaults}):
        raise TypeError(f"unknown argument {unknown[0]!r}; the keywords are {sorted(defaults)}.")
    return {**defaults, **given, **own}


def full_signature(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, dict[str, Option]]:
    """Return the signature with the keywords of ``**options`` expanded, and these keywords."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return signature, {}
    rest = parameters.pop()
    (kind,) = inspect.get_annotations(function, eval_str=True)[rest.name].__args__
    options = options_of(kind)
    for name, option in options.items():
        written = kind.__annotations__[name]
        written = getattr(written, "__forward_arg__", written)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=str(written).removeprefix("Annotated[").split(", Option(")[0],
            )
        )
    return signature.replace(parameters=parameters), options


def entry(name: str, option: Option) -> str:
    """Write the entry of a keyword for the section ``Args`` of a docstring."""
    text = f"  {name}: {option.text}"
    return textwrap.fill(text, 100, subsequent_indent="    ", break_on_hyphens=False)


def shows_options(make: Callable[P, T]) -> Callable[P, T]:
    """Show, in the stage or part that a function makes, the arguments that are not the defaults.

    Hyperparameters are shown anyway. ``repr`` of a recipe prints both.
    """
    signature, _ = full_signature(make)
    known = signature.parameters.values()
    defaults = {one.name: one.default for one in known if one.default is not one.empty}

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        result = make(*args, **kwargs)
        declared: Any = result.spec if isinstance(result, Stage) else result
        if not hasattr(declared, "options"):  # lookahead around another optimizer
            return result
        given = signature.bind(*args, **kwargs).arguments
        values = [hyper.value for hyper in declared.hyperparams.values()]
        options = {
            name: shown(given[name])
            for name, default in defaults.items()
            if name in given and not any(given[name] is value for value in values)
            if given[name] is not default and shown(given[name]) != shown(default)
        }
        changed = declared._replace(options={**declared.options, **options})
        return cast(T, stage_of(changed) if isinstance(result, Stage) else changed)

    return made


def shown(value: Any) -> str:
    """Return an option in words; ``...`` for trees, functions and arrays."""
    if isinstance(value, bool | int | float | str | type(None)):
        return repr(value)
    if type(value) is tuple:
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, type | np.dtype):
        return getattr(value, "__name__", str(value))
    return "..."
