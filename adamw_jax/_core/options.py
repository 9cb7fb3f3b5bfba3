"""Keywords that several functions share, each with type, default and description in one place.

A ``TypedDict`` declares them, a function takes them with ``**options: Unpack[...]``, and type
checkers see each of them.

>>> from adamw_jax.optimizers._common import Moments
>>> filled(Moments, {"amsgrad": True})
{'amsgrad': True, 'rectify': False, 'eps_hat': False, 'bias_correction': 'exact'}
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints


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
