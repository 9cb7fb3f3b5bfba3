"""A transformation around a whole optimizer, which no stage may follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from adamw_jax._core import numerics
from adamw_jax._core.boxes import boxed
from adamw_jax._core.stage import Declared

Tree = Any


class Wrapping(NamedTuple):
    """The declaration of a wrapper.

    Attributes:
      name: the function that made it.
      inner: the wrapped transformation.
      outermost: whether it must see the gradients that another wrapper would keep from it.
    """

    name: str
    inner: optax.GradientTransformationExtraArgs
    outermost: bool


class Wrapper(Declared):
    """A transformation that decides when the one inside takes a step; its state has ``inner``."""

    def __repr__(self) -> str:
        """Show the name and what is inside."""
        return f"{self.declaration.name}({self.declaration.inner!r})"

    @property
    def inner(self) -> optax.GradientTransformationExtraArgs:
        """The wrapped transformation."""
        return self.declaration.inner


def wrapper(
    name: str,
    inner: optax.GradientTransformationExtraArgs,
    init: Callable[[Tree], Any],
    update: Callable[..., tuple[Tree, Any]],
    *,
    outermost: bool = False,
) -> Wrapper:
    """Make a wrapper around ``inner`` from its two functions."""
    if isinstance(inner, Wrapper) and inner.declaration.outermost:
        within = inner.declaration.name
        raise ValueError(
            f"{within} must see the gradients that are not finite, which {name} keeps from it: "
            f"put it outside, {within}({name}(...))."
        )
    return Wrapper.of(Wrapping(name, inner, outermost), init, update)


def innermost(tx: Any) -> Any:
    """Return what is inside of all wrappers of ``tx``."""
    return innermost(tx.inner) if isinstance(tx, Wrapper) else tx


def fill_inner(tx: Wrapper, params: Tree, state: Any, like: Any) -> Any:
    """Return the state that ``tx`` starts with, around a state of what is inside.

    Args:
      tx: a wrapper.
      params: the parameters.
      state: the state of ``tx.inner``.
      like: a state; if it is in the boxes of ``nnx.Optimizer``, so is the result.
    """
    plain: Any = tx.init(numerics.unbox(numerics.as_arrays(params)))
    return boxed(plain._replace(inner=numerics.unbox(state)), tx, params, like)


def check_last(tx: Any) -> None:
    """Raise if ``tx``, an argument of ``compose``, is a wrapper."""
    if isinstance(tx, Wrapper):
        name = tx.declaration.name
        raise TypeError(
            f"{name} decides when the whole optimizer takes a step, and stages after it would not "
            f"know: put it around the whole recipe, {name}(compose(...))."
        )
