"""Learn one scale per block of the initial parameters from a stream of batches.

    params -> {scale_m W_m},    the scales from ``GradInit.step`` over pairs (S, S~) of batches

Use it for deep networks without normalisation and for initialisations with a wrong scale. Starting
from a good initialisation, it made training slower. Zhu, Ni, Xu, Kong, Huang & Goldstein, NeurIPS
2021, arXiv 2102.08098.

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
    """The result of a search.

    Attributes:
      scales: a tree like the parameters with one scalar per leaf; 1 for leaves without a scale.
      blocks: names of the blocks, in the order of the arrays in ``history``.
      history: a ``GradInitRecord`` of NumPy arrays with the steps along their first axis.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2)
      >>> params = {"kernel": 5 * jnp.ones((3, 2))}
      >>> batches = [(jnp.ones((4, 3)), jnp.ones((4, 3)))] * 3
      >>> scaled, about = aj.gradinit(
      ...     params, loss_fn, batches, num_steps=3, eta=0.1, gamma=1.0, scale_lr=0.1
      ... )
      >>> about.blocks, float(about.scales["kernel"]) < 1
      (('kernel',), True)
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
    """Rescale initial parameters so that the first step of training lowers the loss most.

    About one epoch of steps is usual (the authors: 390 steps with batches of 128 on CIFAR). A step
    costs two gradients, or three to four while the norm of the gradient is too large.

    Args:
      params: initial parameters, any tree. The scales of bfloat16 leaves are float32.
      loss_fn: ``(params, batch) -> scalar``, without dropout, and with batch norm in training mode,
        whose new statistics are dropped.
      batches: pairs (S, S~), read one by one. The two should share half of their examples;
        ``overlapping_pair`` makes such pairs.
      num_steps: number of steps, >= 1; None for one per pair.
      progress: called after every step with the number of steps done and a ``GradInitRecord`` of
        arrays, which may still be computing.
      **settings: arguments of ``GradInit``. Required: ``eta``, ``gamma`` and ``scale_lr``. Others:
        ``algorithm``, ``normalize``, ``min_scale``, ``min_bias_scale``, ``max_scale``,
        ``grad_clip``, ``betas``, ``shared_second_moment``, ``block_fn``, ``is_bias`` and
        ``differentiate_inner``.

    Returns:
      Parameters with the structure, shapes and dtypes of ``params``, and a ``GradInitInfo``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2)
      >>> params = {"kernel": 5 * jnp.ones((3, 2))}
      >>> batches = [(jnp.ones((4, 3)), jnp.ones((4, 3)))] * 3
      >>> scaled, about = aj.gradinit(
      ...     params, loss_fn, batches, num_steps=3, eta=0.1, gamma=1.0, scale_lr=0.1
      ... )
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
