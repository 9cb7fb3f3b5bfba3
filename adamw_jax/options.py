"""Keywords that several functions share: type, default and sentence of each in one place.

A ``TypedDict`` names them, ``**options: Unpack[...]`` takes them, and type checkers see each one.

>>> from typing import Annotated, TypedDict
>>> class Look(TypedDict, total=False):
...     width: Annotated[int, Option(3, "how wide it is.")]
>>> Options(Look, {}).width, Options(Look, {"width": 4}).width
(3, 4)
"""

from __future__ import annotations

import inspect
import textwrap
import types
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


class Options(types.SimpleNamespace):
    """Every keyword of a ``TypedDict`` by name: as given, or its default."""

    def __init__(self, kind: Any, given: Mapping[str, Any], **own: Any) -> None:
        """Takes the keywords that were given, and those that a function spells out itself."""
        defaults = {name: option.default for name, option in options_of(kind).items()}
        super().__init__(**{**defaults, **given, **own})


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
