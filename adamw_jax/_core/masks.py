"""Masks: the leaves that a stage acts on, as a tree, a function, or patterns of leaf names.

>>> import jax.numpy as jnp
>>> params = {"dense": {"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 2))}}
>>> resolve("*/kernel", params, "mask")
{'dense': {'bias': False, 'kernel': True}}
>>> resolve(except_named("bias", "scale"), params, "mask")
{'dense': {'bias': False, 'kernel': True}}
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch

Tree = Any
Mask = Any
"""None (every leaf), a tree of bools, ``params -> tree of bools``, or a pattern on leaf names."""


def resolve(mask: Mask, tree: Tree, argument: str) -> Tree:
    """Return ``mask`` as a tree of bools with one entry for every leaf of ``tree``.

    Args:
      mask: None for every leaf; a tree of bools shaped like ``tree`` or a prefix of it; a function
        from ``tree`` to such a tree; or a pattern such as ``"*/kernel"``, or several in a tuple,
        matched against slash-separated leaf names.
      tree: parameters or gradients.
      argument: name of the user's argument, for the error.

    Raises:
      ValueError: the mask does not fit the tree, or a pattern matches no leaf.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, tree)
    if isinstance(mask, str) or _is_patterns(mask):
        return _by_patterns((mask,) if isinstance(mask, str) else mask, tree, argument)
    if any(mask is make for make in (except_named, kernels_only)):
        name = mask.__name__
        raise TypeError(f"{argument} is the function {name} itself: call it, {argument}={name}().")
    if callable(mask) and not _is_tree_of_bools(mask):
        mask = mask(tree)
    mask = numerics.unbox(mask)
    for name, entry in numerics.named_leaves(mask):
        if not isinstance(entry, (bool, np.bool_)):
            where = name or "the root"
            raise TypeError(
                f"{argument} must hold Python bools, got {entry!r} at {where}. A mask is static: "
                "give a tree of bools, a function of the parameters, or a pattern on leaf names."
            )
    if isinstance(mask, (bool, np.bool_)) and not _is_single_leaf(tree):
        raise ValueError(
            f"{argument} is the bare bool {bool(mask)}, which fits no parameter tree. If you "
            "passed a function through optax.inject_hyperparams, it was used as a schedule: add "
            f"static_args={argument!r} there."
        )
    try:
        return jax.tree.map(
            lambda entry, part: jax.tree.map(lambda _: bool(entry), part), mask, tree
        )
    except (ValueError, TypeError) as error:
        of_mask = dict(numerics.named_leaves(mask))  # dicts in place of modules, or the reverse
        if sorted(of_mask) == sorted(numerics.leaf_names(tree)):
            return numerics.map_named(lambda name, _: bool(of_mask[name]), tree)
        raise ValueError(
            f"{argument} does not fit the tree it masks: the leaves of the tree are "
            f"{numerics.leaf_names(tree)}, those of the mask {numerics.leaf_names(mask)}."
        ) from error


def except_named(*names: str) -> Callable[[Tree], Tree]:
    """Make a mask that leaves out leaves by their last names, such as ``"bias"``.

    Args:
      *names: complete last parts of slash-separated leaf names: ``"bias"`` for ``"dense/bias"``. A
        name that no leaf has is allowed.

    Returns:
      A mask: a function from a tree to a tree of bools, False for those leaves.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, weight_decay=0.1, mask=aj.except_named("bias", "scale"))
    """

    def mask(tree: Tree) -> Tree:
        return numerics.map_named(lambda name, _: name.rsplit("/", 1)[-1] not in names, tree)

    return mask


def matrices_only(tree: Tree) -> Tree:
    """Select leaves with two or more axes; use it as a mask.

    These are the kernels only if each layer has leaves of its own. In stacked or scanned layers
    biases and norms have two axes, too, as (layers, width): use ``kernels_only`` there.

    Args:
      tree: parameters or gradients.

    Returns:
      A tree of bools like ``tree``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> aj.matrices_only(params)
      {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: np.ndim(p) > 1, tree)


def kernels_only(*, stacked: Mask = None, embeddings: bool = True) -> Callable[[Tree], Tree]:
    """Make a mask that selects kernels by name and shape, also in stacked layers.

    A leaf is left out if it has fewer than two axes, not counting an axis of layers, or if its name
    says that it is a bias or belongs to a norm: its last part is ``b``, ``scale``, ``gamma``,
    ``beta`` or ``offset`` or ends in ``bias``, or any part contains ``norm`` or is ``ln`` or ``bn``
    with a number or letter after it. These are the names of Flax, Haiku, Equinox and Keras.

    Args:
      stacked: the leaves of which one axis, the first or another, counts layers, as from
        ``nn.scan`` or ``jax.vmap`` of an initializer: a pattern on leaf names such as
        ``"layers/*"``, or another mask; None for none. Biases and norms with the names above are
        found without it.
      embeddings: False also leaves out embeddings: leaves of which a part of the name contains
        ``embed`` or is ``wte`` or ``wpe``.

    Returns:
      A mask: a function from a tree to a tree of bools.

    >>> import jax.numpy as jnp
    >>> layers = {"kernel": jnp.ones((12, 8, 8)), "gain": jnp.ones((12, 8))}
    >>> kernels_only(stacked="layers/*")({"layers": layers})
    {'layers': {'gain': False, 'kernel': True}}
    """
    switch("embeddings", embeddings)

    def mask(tree: Tree) -> Tree:
        layered = jax.tree.map(lambda _: False, tree)
        if stacked is not None:
            layered = resolve(stacked, tree, "stacked")

        def selected(name: str, leaf: Any, own: bool) -> bool:
            parts = name.lower().split("/")
            out = any(map(_NORM.search, parts)) or _VECTOR.fullmatch(parts[-1])
            if not embeddings:
                out = out or any(map(_EMBEDDING.search, parts))
            return not out and np.ndim(leaf) - own > 1

        return numerics.map_named(selected, tree, layered)

    return mask


_NORM = re.compile(r"norm|(^|_)(ln|bn)($|_|\d)")
_VECTOR = re.compile(r".*bias|b|scale|gamma|beta|offset")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")


def show(tree: Tree, chosen: Tree) -> Tree:
    """Put ``MaskedNode`` in place of the leaves where ``chosen`` is False."""
    return jax.tree.map(lambda use, x: x if use else optax.MaskedNode(), chosen, tree)


def hide(tree: Tree, hidden: Tree) -> Tree:
    """Put ``MaskedNode`` in place of the leaves where ``hidden`` is True."""
    return jax.tree.map(lambda out, x: optax.MaskedNode() if out else x, hidden, tree)


def merge(chosen: Tree, part: Tree, whole: Tree) -> Tree:
    """Take the chosen leaves from ``part`` and the others from ``whole``."""
    return jax.tree.map(lambda use, new, old: new if use else old, chosen, part, whole)


def matches(name: str, pattern: str) -> bool:
    """Return whether a leaf name matches a shell-style pattern; ``*`` also matches slashes."""
    return fnmatch.fnmatchcase(name, pattern)


def idle_patterns(patterns: Iterable[str], tree: Tree) -> list[str]:
    """Return the patterns that match no leaf; a tree without leaves has none.

    A pattern may match only frozen or masked leaves, which have no effect here.
    """
    names = _all_names(tree)
    return [p for p in patterns if names and not any(matches(name, p) for name in names)]


def _all_names(tree: Tree) -> list[str]:
    return [name for name, _ in numerics.named_leaves(tree, _is_masked)]


def _by_patterns(patterns: Any, tree: Tree, argument: str) -> Tree:
    for pattern in idle_patterns(patterns, tree):
        raise ValueError(
            f"{argument} has the pattern {pattern!r}, which matches none of the leaves "
            f"{_all_names(tree)}."
        )
    return numerics.map_named(lambda name, _: any(matches(name, p) for p in patterns), tree)


def _is_patterns(mask: Mask) -> bool:
    return (
        isinstance(mask, (tuple, list)) and len(mask) > 0 and all(isinstance(m, str) for m in mask)
    )


def _is_tree_of_bools(mask: Mask) -> bool:
    """Return whether a callable is a tree of bools, such as an Equinox module that holds bools."""
    dtypes = [getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(mask)]
    return len(dtypes) > 0 and all(dtype in (bool, np.bool_) for dtype in dtypes)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_single_leaf(tree: Tree) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(0) or jax.tree.leaves(tree) == []
