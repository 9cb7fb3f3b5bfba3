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

from typing import Any, NamedTuple

import jax
import optax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.encoding import check_encoded, update_encoded
from adamw_jax._core.gradients import entering
from adamw_jax._core.sequential import switched
from adamw_jax._core.stage import transformation
from adamw_jax.storage._formats import MIN_SIZE, StorageLike, choose, encode_state

Tree = Any

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
        check_encoded("quantize_state", state, init, like, choice.min_size)
        with switched(choice.sequential):
            if not stochastic:
                return update_encoded(inner.update, updates, state, params, extra)
            now, later = jax.random.split(jax.random.wrap_key_data(state.key))
            updates, stored = update_encoded(
                inner.update, updates, state.inner, params, extra, key=now
            )
        return updates, StochasticState(stored, jax.random.key_data(later))

    return optax.GradientTransformationExtraArgs(init, update)
