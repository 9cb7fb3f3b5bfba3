"""Keywords that several functions share: type, default and sentence of each in one place.

A ``TypedDict`` names them, ``**options: Unpack[...]`` takes them, and type checkers see each one.

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
    """What there is to know of a keyword besides its type.

    Attributes:
      default: its value where it is not given.
      text: what it is, for the docstrings.
      in_direction: of a keyword of optimizers, whether ``scale_by_x`` takes it, too.
    """

    default: Any
    text: str
    in_direction: bool = False


def options_of(kind: Any) -> dict[str, Option]:
    """The keywords of a ``TypedDict`` whose fields are ``Annotated[type, Option(...)]``."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def filled(kind: Any, given: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Every keyword of a ``TypedDict`` by name: as given, or its default.

    Raises:
      TypeError: a keyword is given that it does not have.
    """
    defaults = {name: option.default for name, option in options_of(kind).items()}
    if unknown := sorted({*given, *own} - {*defaults}):
        raise TypeError(f"there is no argument {unknown[0]!r}; there are {sorted(defaults)}.")
    return {**defaults, **given, **own}


def full_signature(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, dict[str, Option]]:
    """The signature with the keywords of ``**options: Unpack[...]`` one by one, and these."""
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
    """The lines of a keyword in the section ``Args`` of a docstring."""
    text = f"  {name}: {option.text}"
    return textwrap.fill(text, 100, subsequent_indent="    ", break_on_hyphens=False)
