"""``gradinit``: learns one scale per block of the initial parameters, over a stream of batches.

    params -> {scale_m W_m},    the scales from ``GradInit.step`` over pairs (S, S~) of batches

It is for deep networks without normalisation and for initialisations of a bad scale; from a good
one training was slower for it. Zhu, Ni, Xu, Kong, Huang & Goldstein, NeurIPS 2021, arXiv
2102.08098.

>>> import jax.numpy as jnp
>>> def loss_fn(params, batch):
...     return jnp.mean((params["w"] * batch) ** 2)
>>> params, batch = {"w": jnp.full(3, 5.0)}, jnp.ones(3)
>>> batches = [(batch, batch)] * 40
>>> new, info = gradinit(params, loss_fn, batches, eta=0.1, gamma=1.0, scale_lr=0.1)
>>> bool(info.history.gradient_norm[0] > 5), bool(info.history.gradient_norm[-1] < 1.5)
(True, True)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from adamw_jax._core.checks import positive_steps
from adamw_jax.initialization._search import GradInit, GradInitRecord, LossFn

Tree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class GradInitInfo:
    """What a search found.

    Attributes:
      scales: a scalar for every leaf, in a tree like the parameters; 1 where it had no part.
      blocks: names of the blocks, in the order of the arrays over blocks in ``history``.
      history: a ``GradInitRecord`` of NumPy arrays with the steps along their first axis.
    """

    scales: Tree
    blocks: tuple[str, ...]
    history: GradInitRecord


def gradinit(
    params: Tree,
    loss_fn: LossFn,
    batches: Iterable[tuple[Any, Any]],
    *,
    num_steps: int | None = None,
    progress: Callable[[int, GradInitRecord], None] | None = None,
    **settings: Any,
) -> tuple[Tree, GradInitInfo]:
    """Rescales initial parameters so that the first step of training does most.

    About one epoch of steps is usual (the authors: 390 of batch 128 on CIFAR). A step costs two
    gradients, or three to four where the gradient's norm is too large.

    Args:
      params: initial parameters, any tree; bfloat16 leaves keep float32 scales.
      loss_fn: ``(params, batch) -> scalar``, without dropout, and with batch norm in training mode
        whose new statistics are dropped.
      batches: pairs (S, S~), read one by one; best share half of their examples, as
        ``overlapping_pair`` makes them.
      num_steps: steps, >= 1; None for as many as there are pairs.
      progress: called after every step with the number of steps done and a ``GradInitRecord`` of
        arrays, which need not be ready yet.
      **settings: of ``GradInit``: ``eta``, ``gamma`` and ``scale_lr``, which are required,
        ``algorithm``, ``normalize``, ``min_scale``, ``min_bias_scale``, ``max_scale``,
        ``grad_clip``, ``betas``, ``shared_second_moment``, ``block_fn``, ``is_bias``,
        ``differentiate_inner``.

    Returns:
      Parameters with the structure, shapes and dtypes of ``params``, and what was found.

    Raises:
      ValueError: a setting is out of its range, or there are too few pairs.
      TypeError: a setting is missing or unknown, a pair is none, or the loss is no scalar.
    """
    search = GradInit(loss_fn, **settings)
    steps = None if num_steps is None else positive_steps("num_steps", num_steps)
    step, state, records = jax.jit(search.step), search.init(params), []
    for pair in itertools.islice(batches, steps):
        state, record = step(params, state, _checked(pair))
        records.append(record)
        if progress is not None:
            progress(len(records), record)
    if not records or (steps is not None and len(records) < steps):
        raise ValueError(
            f"batches ran out after {len(records)} of {steps or 1} pairs: give more, or repeat "
            "them with itertools.cycle."
        )
    history = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(records))
    blocks = search.blocks(params)
    info = GradInitInfo(blocks.per_leaf(state.scales), blocks.names, history)
    return blocks.rescaled(state.scales), info


def _checked(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"batches must give pairs (S, S~), got {type(pair).__name__}: make them of ordinary "
            "batches with map(overlapping_pair, batches)."
        )
    return pair[0], pair[1]
