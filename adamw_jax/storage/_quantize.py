"""``quantize_state``: make the state of any optax transformation smaller.

    decode the state -> one step in full precision -> encode the state

As in the papers, the step uses the new moments before they are encoded.

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
    """Encode the large arrays in the state of ``tx``, in about 1 byte per value.

    It encodes real arrays that belong to a parameter (their path ends with its path, and they have
    its shape), if the codes are smaller. Scalars, small arrays and the state of ``exempt``
    parameters stay in float32. So do copies and averages of the parameters and the gradients that
    ``optax.MultiSteps`` accumulates, unless ``storage`` names their fields.

    Args:
      tx: any transformation; the optimizers of this library also take ``storage=`` themselves.
      storage: ``"8bit"``, ``"4bit"``, ``"float8"``, ``"bfloat16"``, ``"float32"``, a format such as
        ``eight_bit(block_size=2048)``, or a mapping from field names of the state to them, such as
        ``{"mu": "8bit", "nu": "bfloat16"}``.
      unsigned: fields of the state that are never negative and so need no sign. Fields that are
        known: those of optax and of this library, and those that a state class of your own names
        in ``nonnegative = ("nu",)``. Any other field keeps its sign.
      signed: fields that may be negative, although their class declares otherwise.
      min_size: arrays with fewer elements are not encoded; 4096 (bitsandbytes, torchao).
      exempt: patterns of names of parameters whose state is not encoded: ``"*embedding*"`` for
        language models, whose embeddings get rare, large gradients.
      rounding: ``"nearest"``, or ``"stochastic"``, which keeps a key in the state and makes the
        mean of the stored values exact between the levels of a map. If roots are stored, the mean
        of the roots is exact. A value below the lowest positive level becomes that level if the
        floor applies.
      seed: the seed of stochastic rounding. Every array draws its own numbers, by its path, also in
        parts of ``optax.partition`` with a common seed.
      sequential: as for ``choose``.

    Returns:
      A transformation whose state is that of ``tx`` with ``Encoded`` nodes in place of arrays, for
      stochastic rounding in a ``StochasticState``.

    Raises:
      ValueError: in ``init``, a field or pattern matches nothing, or a parameter is sharded within
        blocks; in ``update``, the state is not encoded.

    Block-wise 8-bit state: Dettmers, Lewis, Shleifer & Zettlemoyer, ICLR 2022, arXiv 2110.02861.

    Example:
      >>> import jax.numpy as jnp, optax, adamw_jax as aj
      >>> params = {"w": jnp.ones((128, 64))}
      >>> tx = aj.quantize_state(optax.adam(1e-3), "8bit")
      >>> state = tx.init(params)
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
