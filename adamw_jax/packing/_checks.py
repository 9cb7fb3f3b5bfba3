"""Check that leaves can share a buffer: the same placement and the same treatment.

>>> import jax.numpy as jnp, optax
>>> two = {"a": jnp.ones(2), "b": jnp.ones(3)}
>>> check_whole(optax.trace(0.9), Packer(limit=10, group=2, by_dtype=True), two)
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamw_jax._core import numerics
from adamw_jax.packing._buffers import Packer, Run
from adamw_jax.packing._elementwise import programs
from adamw_jax.storage._shards import sharding_of

Tree = Any


def check_recipe(moments: optax.GradientTransformation, packer: Packer, params: Tree) -> None:
    """Raise if the stages on moments treat small leaves differently by shape."""
    named = _packed_leaves(packer, params)
    if not named:
        return
    dtype = numerics.default_float()
    by_shape = {x.shape: name for name, x in named.items()}
    sample = {name: jax.ShapeDtypeStruct(shape, dtype) for shape, name in by_shape.items()}
    sample["a buffer of leaves"] = jax.ShapeDtypeStruct((packer.limit * packer.group,), dtype)
    [found] = _programs(moments, sample)
    _check_alike(dict(zip(sorted(sample), found, strict=True)))


def check_whole(tx: optax.GradientTransformation, packer: Packer, params: Tree) -> None:
    """Raise if a transformation treats leaves that share a buffer in different ways."""
    if not _packed_leaves(packer, params):
        return
    leaves, names = jax.tree.leaves(params), numerics.leaf_names(params)
    runs = packer.runs(leaves)
    try:
        plain, packed = _programs(tx, params, packer.pack(params))
    except ValueError:  # from a tree of labels: a better error names the leaves
        [plain] = _programs(tx, params)
        for run in runs:
            _check_alike({names[i]: plain[i] for i in run.leaves})
        raise
    gone = {i for run in runs for i in run.leaves[1:]}
    holders = [i for i in range(len(leaves)) if i not in gone]
    of_holder = dict(zip(holders, packed, strict=True))
    for run in [*runs, *(Run((i,), ()) for i in holders)]:
        alike = {names[i]: plain[i] for i in run.leaves}
        _check_alike({**alike, "a buffer of leaves": of_holder[run.leaves[0]]})


def _programs(tx: optax.GradientTransformation, *trees: Tree) -> list[Any]:
    try:
        return programs(tx, *trees)
    except ValueError as error:
        raise ValueError(
            f"pack_small_leaves cannot pack this: {error}. Pack the element-wise part alone, as in "
            "optax.chain(optax.clip_by_global_norm(1.0), pack_small_leaves(optax.adam(1e-3))), or "
            "leave packing out."
        ) from error


def _packed_leaves(packer: Packer, params: Tree) -> dict[str, Any]:
    """Return the leaves that will be packed, by name."""
    leaves, names = jax.tree.leaves(params), numerics.leaf_names(params)
    found = {names[i]: leaves[i] for run in packer.runs(leaves) for i in run.leaves}
    for name, x in found.items():
        sharding = sharding_of(name, x)
        if sharding is not None and not sharding.is_fully_replicated:
            raise ValueError(
                f"the leaf {name!r} of {x.size} elements is sharded ({sharding}), but leaves in "
                f"one buffer must be replicated: give limit={x.size} or less, or replicate it."
            )
    return found


def _check_alike(found: dict[str, Any]) -> None:
    first, *others = found
    for name in others:
        if found[name] != found[first]:
            raise ValueError(
                f"{first!r} and {name!r} are treated differently (by a mask, a rule or labels by "
                "name or shape), so they cannot share a buffer. Pack only the part that treats "
                "them alike, optax.chain(pack_small_leaves(optax.scale_by_adam()), "
                "optax.add_decayed_weights(0.1, mask), optax.scale_by_learning_rate(1e-3)), or "
                "each part of optax.partition in its own pack_small_leaves, or use an optimizer of "
                "adamw_jax, which applies masks outside the packed part."
            )
