"""``quantize_state``: any optax transformation with a smaller state.

    decode the state -> one step in full precision -> encode the state

The step itself uses the new moments as they are before they are encoded, as in the papers.

>>> import jax.numpy as jnp, optax
>>> params = {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)}
>>> tx = quantize_state(optax.adam(1e-3))
>>> [leaf.dtype.name for leaf in jax.tree.leaves(tx.init(params)[0].mu)]
['float32', 'uint8', 'float32']
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax import numerics
from adamw_jax.boxes import has_boxes
from adamw_jax.checks import one_of
from adamw_jax.gradients import entering
from adamw_jax.sequential import leaf_by_leaf, switched, wait, way
from adamw_jax.stage import transformation
from adamw_jax.storage.choice import (
    MIN_SIZE,
    Choice,
    StorageLike,
    choose,
    encode_state,
)
from adamw_jax.storage.encoded import decode_state, encode_like, encoded_as, is_encoded

Tree = Any
Update = Callable[..., tuple[Tree, Tree]]

ROUNDINGS = ("nearest", "stochastic")


class StochasticState(NamedTuple):
    """An encoded state, and the key of the next rounding."""

    inner: Any
    key: jax.Array


def quantize_state(
    tx: optax.GradientTransformation,
    storage: StorageLike = "8bit",
    *,
    unsigned: str | tuple[str, ...] = (),
    signed: str | tuple[str, ...] = (),
    min_size: int = MIN_SIZE,
    exempt: str | tuple[str, ...] = (),
    rounding: str = "nearest",
    seed: int = 0,
    sequential: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """``tx`` with the large arrays of its state encoded, about 1 byte a value.

    Encoded are the arrays that belong to a parameter (their path ends with its path, and they have
    its shape), are real, and take less room encoded; scalars, small arrays and what ``exempt``
    names stay in float32. So do copies and averages of the parameters and the gradients that
    ``optax.MultiSteps`` accumulates, unless ``storage`` names them.

    Args:
      tx: any transformation; the optimizers of this library also take ``storage=`` themselves.
      storage: ``"8bit"``, ``"4bit"``, ``"float8"``, ``"bfloat16"``, ``"float32"``, a format such as
        ``eight_bit(block_size=2048)``, or a mapping from field names of the state to them, such as
        ``{"mu": "8bit", "nu": "bfloat16"}``.
      unsigned: fields of the state that are never negative and so take the unsigned map, beside
        those that a state class of its own names in ``nonnegative = ("nu",)``; the classes of this
        library and of optax are known. Any other field keeps its sign.
      signed: fields that may be negative although their class says that they never are.
      min_size: arrays with fewer elements stay as they are; 4096 (bitsandbytes, torchao).
      exempt: patterns on parameter names whose state stays as it is: ``"*embedding*"`` for language
        models, whose embeddings see rare and large gradients.
      rounding: ``"nearest"``, or ``"stochastic"``, which makes the mean of what is stored exact
        between the levels of a map and keeps a key in the state. Not so where roots are stored,
        whose mean is exact in their place, and where the floor keeps a value from 0.
      seed: of the stochastic rounding. Every array draws numbers of its own, by its path, also in
        the parts of ``optax.partition`` that have one seed.
      sequential: whether a step goes one parameter after the other, which bounds its scratch by the
        largest; None for yes on CPU (XLA for a GPU does so by itself), except in meshes with
        explicit axes that cut an array.

    Returns:
      A transformation whose state is that of ``tx`` with ``Encoded`` nodes in the place of arrays,
      for stochastic rounding in a ``StochasticState``.

    Raises:
      TypeError: ``tx`` is no transformation, or ``storage`` is none of the above.
      ValueError: an unknown word, a size that is no whole number; in ``init``, a field or pattern
        that nothing matches, or a parameter sharded within blocks; in ``update``, a state that is
        not encoded.

    Block-wise 8-bit state: Dettmers, Lewis, Shleifer & Zettlemoyer, ICLR 2022, arXiv 2110.02861.
    """
    inner = transformation(tx, "tx")
    one_of("rounding", rounding, ROUNDINGS)
    choice = choose(
        storage,
        unsigned=unsigned,
        signed=signed,
        min_size=min_size,
        exempt=exempt,
        sequential=sequential,
    )
    stochastic = rounding == "stochastic"

    def init(params: Tree) -> Any:
        params = numerics.as_arrays(params)
        whole = inner.init(params)
        choice.check_names(whole, params)
        state = encode_state(whole, params, choice)
        return (
            StochasticState(state, jax.random.key_data(jax.random.key(seed)))
            if stochastic
            else state
        )

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra: Any):
        updates, params = entering(updates, params)
        like = updates if params is None else params
        check_encoded("quantize_state", state, init, like, choice)
        with switched(choice.sequential):
            if not stochastic:
                return update_encoded(inner.update, updates, state, params, extra)
            now, later = jax.random.split(jax.random.wrap_key_data(state.key))
            updates, stored = update_encoded(
                inner.update, updates, state.inner, params, extra, key=now
            )
        return updates, StochasticState(stored, jax.random.key_data(later))

    return optax.GradientTransformationExtraArgs(init, update)


def update_encoded(
    update: Update,
    updates: Tree,
    state: Tree,
    params: Tree | None,
    extra: dict[str, Any],
    *,
    key: jax.Array | None = None,
    decode: Callable[[Tree], Tree] = decode_state,
) -> tuple[Tree, Tree]:
    """One step on a state that may hold encoded arrays.

    Args:
      update: of the transformation, on a decoded state.
      updates: what comes in.
      state: encoded, or as it is.
      params: current parameters, or None.
      extra: further arguments of ``update``.
      key: what stochastic rounding draws from; None for the nearest level.
      decode: opens the state.

    Returns:
      Updates, and a state encoded like ``state``.
    """
    if not _holds_encoded(state):
        return update(updates, state, params, **extra)
    if has_boxes(updates):  # an encoded array has none, so that all must do without
        plain, opened, open_params = map(numerics.unbox, (updates, state, params))
        moved, new = update_encoded(
            update, plain, opened, open_params, extra, key=key, decode=decode
        )
        return _as(updates, moved), _as(state, new)

    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded)

    def noise(number: int, x: jax.Array) -> jax.Array:
        assert key is not None
        own = numerics.key_of(key, nodes[number][0], x)
        return jax.random.uniform(own, x.shape, jnp.float32)

    def step(updates: Tree, state: Tree) -> tuple[Tree, Tree, None]:
        return *update(updates, decode(state), params, **extra), None

    chance = None if key is None else noise

    def encode(number: int, made: Any, known: jax.Array | None) -> tuple[Any, jax.Array | None]:
        if not is_encoded(made):
            made = made if known is None else wait(made, known)
            made = encoded_as(nodes[number][1], made, number, chance)
        scales = [scale.ravel()[0] for scale in jax.tree.leaves(made.scales)]
        return made, functools.reduce(lax.add, scales) if scales else known

    if (how := way(updates, state)) is not None:
        in_branches = how == "branches"
        return leaf_by_leaf(step, updates, state, is_encoded, encode, in_branches=in_branches)
    moved, new, _ = step(updates, state)
    return moved, encode_like(state, new, chance)


def _as(like: Tree, tree: Tree) -> Tree:
    """``tree`` in the boxes of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def _holds_encoded(state: Tree) -> bool:
    return any(map(is_encoded, jax.tree.leaves(state, is_leaf=is_encoded)))


def check_encoded(
    name: str, state: Tree, init: Callable[[Tree], Tree], updates: Tree, choice: Choice
) -> None:
    """Raises for a state with an array that is not stored as ``init`` would store it.

    Args:
      name: of the stage or function, for the error.
      state: what was given.
      init: makes what is expected.
      updates: the parameters, or what is shaped like them.
      choice: which arrays are encoded.
    """
    leaves, structure = jax.tree.flatten(updates)
    if all(jnp.size(x) < choice.min_size for x in leaves):
        return
    like = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    expected = _expected(init, structure, like, numerics.default_float())
    for path, held in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded):
        made = expected.get(path)
        if made is None or not _is_stored_otherwise(held, made):
            continue
        are = [x.layout.name if is_encoded(x) else "in full precision" for x in (held, made)]
        raise ValueError(
            f"the state of {name} has {jax.tree_util.keystr(path) or 'its array'} stored otherwise "
            f"than storage= says: {are[0]}, and not {are[1]}. Start with its own init, or carry a "
            "state of another storage over, with migrate_state(saved, tx, params) of a recipe of "
            "this library, or with adamw_jax.storage.encode_state(decode_state(state), params, "
            "choose(storage))."
        )


@functools.lru_cache(maxsize=64)
def _expected(
    init: Callable[[Tree], Tree], structure: Any, leaves: tuple[Any, ...], _: Any
) -> dict[Any, Any]:
    """By their paths, the arrays of a state that ``init`` makes; once for a dtype of floats."""
    made = jax.eval_shape(init, jax.tree.unflatten(structure, leaves))
    return dict(jax.tree_util.tree_leaves_with_path(made, is_leaf=is_encoded))


def _is_stored_otherwise(held: Any, made: Any) -> bool:
    """Whether one of two arrays of a shape is encoded, or both by different layouts.

    A shard, whose layout knows the whole array, and an array of another dtype prove nothing.
    """
    if not is_encoded(held):
        return is_encoded(made) and jnp.shape(held) == made.layout.shape
    like, layout = (made.layout if is_encoded(made) else made), held.layout
    if (like.shape, like.dtype) != (layout.shape, layout.dtype):
        return False
    return not is_encoded(made) or made.layout.name != layout.name
