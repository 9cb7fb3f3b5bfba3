"""Choose the axes of a leaf that are factored: two, or two groups of them.

>>> split_of("last", "dense/kernel", (512, 256), 128)
Split(first=(0,), second=(1,))
>>> split_of({"*/query/kernel": (0, (1, 2))}, "attention/query/kernel", (512, 8, 64), 128)
Split(first=(0,), second=(1, 2))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import one_of

Shape = tuple[int, ...]

AXES = ("last", "largest")


@dataclasses.dataclass(frozen=True)
class Split:
    """The two groups of factored axes; the other axes are a batch of matrices.

    Attributes:
      first: axes over which the columns are means; empty if the leaf is not factored.
      second: axes over which the rows are means.
    """

    first: Shape = ()
    second: Shape = ()

    def __bool__(self) -> bool:
        """Whether the leaf is factored."""
        return bool(self.first)

    @property
    def in_rows(self) -> Shape:
        """Positions of the first axes in the array of rows, which lacks the second axes."""
        return tuple(axis - sum(a < axis for a in self.second) for axis in self.first)

    def shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return the shapes of the rows and the columns of a leaf."""
        return (_without(shape, self.second), _without(shape, self.first)) if self else (shape, ())


def split_of(axes: Any, name: str, shape: Shape, smallest: int) -> Split:
    """Return the axes along which a leaf is factored.

    Args:
      axes: as for ``factored_squares``.
      name: name of the leaf.
      shape: shape of the leaf.
      smallest: least size of both groups of axes.
    """
    chosen = axes
    if isinstance(axes, Mapping):
        found = [pattern for pattern in axes if masks.matches(name, pattern)]
        if len(found) > 1:
            raise ValueError(
                f"axes has several patterns for the leaf {name!r}, {found}: make one of them "
                "narrower."
            )
        chosen = axes[found[0]] if found else "last"
    if chosen is None or (len(shape) < 2 and chosen in AXES):
        return Split()
    if chosen == "last":
        split = Split((len(shape) - 2,), (len(shape) - 1,))
    elif chosen == "largest":
        order = np.argsort(shape)  # as optax, also for equal sizes
        split = Split((int(order[-2]),), (int(order[-1]),))
    else:
        split = Split(*(_group(axes, len(shape)) for axes in chosen))
        if -1 in (every := split.first + split.second) or len(set(every)) < len(every):
            raise ValueError(
                f"axes gives {chosen!r} for the leaf {name!r}, which has the shape {shape}: name "
                "existing axes, each at most once."
            )
    groups = (split.first, split.second)
    return split if min(math.prod(shape[a] for a in g) for g in groups) >= smallest else Split()


def checked(axes: Any) -> Any:
    """Check that ``axes`` is a word or a table of patterns, and copy a table."""
    if not isinstance(axes, Mapping):
        one_of("axes", axes, AXES)
        return axes
    for pattern, chosen in axes.items():
        pair = isinstance(chosen, tuple) and len(chosen) == 2 and all(map(_is_group, chosen))
        word = chosen is None or (isinstance(chosen, str) and chosen in AXES)
        if not isinstance(pattern, str) or not (word or pair):
            raise ValueError(
                f"axes must map patterns on leaf names to one of {AXES}, None (not factored), or "
                f"the axes of rows and columns such as (0, (1, 2)); got {pattern!r}: {chosen!r}."
            )
    return dict(axes)


def check_patterns(axes: Any, tree: Any) -> None:
    """Raise an error if a pattern matches no leaf, counting masked leaves."""
    masked = numerics.named_leaves(tree, lambda node: isinstance(node, optax.MaskedNode))
    names = [name for name, _ in masked]
    for pattern in axes if names and isinstance(axes, Mapping) else ():
        if not any(masks.matches(name, pattern) for name in names):
            raise ValueError(
                f"axes has the pattern {pattern!r}, which matches none of the leaves {names}: "
                "correct or remove it."
            )


def _without(shape: Shape, axes: Shape) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _group(axes: int | Shape, rank: int) -> Shape:
    """Return the axes counted from the front, -1 for an axis that does not exist."""
    every = axes if isinstance(axes, tuple) else (axes,)
    return tuple(sorted(int(axis) % rank if -rank <= axis < rank else -1 for axis in every))


def _is_group(axes: Any) -> bool:
    every = axes if isinstance(axes, tuple) and axes else (axes,)
    return all(isinstance(axis, int | np.integer) and not isinstance(axis, bool) for axis in every)
