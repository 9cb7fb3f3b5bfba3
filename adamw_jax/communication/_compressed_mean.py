"""Average the gradients of all workers through small messages, with error feedback.

    p = g + e;    C(p) to the other workers;    e <- p - C(p)
    gradient of the optimizer = mean over workers of C(p)

g is the gradient of one worker, e its memory: what it has not told the others yet. So over T steps
sum(C(p)) + e_T = sum(g), nothing is lost. Compressors that are right in the mean have no memory.
Seide et al., Interspeech 2014; Karimireddy, Rebjock, Stich & Jaggi, ICML 2019, arXiv 1901.09847.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import compose, sgdw
>>> from adamw_jax.communication import scaled_sign
>>> tx = compose(compressed_mean(scaled_sign(), "data", workers=2), sgdw(1.0, momentum=None))
>>> params, gradients = jnp.zeros(2), jnp.array([[4.0, 2.0], [0.0, 2.0]])  # one row a worker
>>> start = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=2)
>>> step = jax.vmap(tx.update, axis_name="data", in_axes=(0, 0, None))
>>> updates, state = step(gradients, start(params), params)
>>> updates[0]  # the mean of (3, 3) and (1, 1); that of the gradients is (2, 2)
Array([-2., -2.], dtype=float32)
>>> state.stages["compressed_mean"].error[:, 0]
Array([[ 1., -1.],
       [-1.,  1.]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch, whole_number
from adamw_jax._core.gradients import check_floating, check_gradient
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail
from adamw_jax.communication._compressor import Compressor, Exchanged, Wire

Tree = Any

NAME = tail("compressed_mean")


class CompressedMeanState(NamedTuple):
    """State of ``compressed_mean``.

    Attributes:
      error: what each worker has not told the others yet: like the parameters, with a first axis of
        one row per worker; inside ``jax.shard_map`` one row. A complex leaf has a last axis of real
        and imaginary part. None without error feedback.
      memory: for each leaf an array that the compressor keeps, the same on all workers; None if it
        keeps nothing.
    """

    error: Tree
    memory: Tree
    exact = ("error", "memory")


@shows_options
def compressed_mean(
    compressor: Compressor,
    axis_name: str | Sequence[str],
    workers: int,
    *,
    error_feedback: bool | None = None,
    seed: int = 0,
) -> Stage:
    """Replace the gradient of each worker by a mean over workers from compressed messages.

    Put it first, inside ``jax.shard_map`` over the axis of the data::

        tx = compose(compressed_mean(one_bit(), "data", workers=8), clip_gradient(1.0), adamw(1e-3))

    Args:
      compressor: ``majority_vote``, ``scaled_sign``, ``one_bit``, ``qsgd``, ``terngrad``,
        ``top_k``, ``random_k``, ``power_sgd``, or a ``Compressor`` of your own.
      axis_name: the axis of ``jax.shard_map`` along which the workers are, or several; or that of
        a ``jax.vmap``, which simulates them.
      workers: their number, >= 1, the size of the axis.
      error_feedback: keep what was not sent and add it to the next gradient. None: if the
        compressor is made for it. True raises an error for the others.
      seed: of the random choices of the compressor, a whole number >= 0; 0. The draws of a step
        depend on it, on the step count and on the path of the leaf.

    Returns:
      A stage *gradient -> gradient*. Each worker must give the gradient of its own part of the
      batch, and gets the same result. Per step it also sends one number with which the workers
      agree whether all gradients are finite. If one is not, or the result overflows, the result is
      NaN on all workers and the memory stays as it was; ``skip_bad_steps`` then skips the step.

    Raises:
      ValueError: ``error_feedback=True`` does not fit the compressor, or (in ``update``) the axis
        is not there or has another size, the memory is not split between workers, or the gradient
        has been averaged before.

    Example:
      >>> import jax, adamw_jax as aj
      >>> compress = aj.communication.compressed_mean(aj.communication.one_bit(), "data", workers=8)
      >>> tx = aj.compose(compress, aj.adamw(1e-3))  # update runs inside jax.shard_map
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"compressor must be a Compressor, such as one_bit() or top_k(0.01), got {compressor!r}"
            "."
        )
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    workers, seed = whole_number("workers", workers), whole_number("seed", seed, 0)
    feedback = _feedback_of(compressor, error_feedback)

    def init(params: Tree) -> CompressedMeanState:
        check_floating(params, "parameter")
        rows = workers if _size_of(axes) is None else 1
        like = jax.tree.map(real_like, params)
        error = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), like)
        return CompressedMeanState(
            error if feedback else None, first_memory(compressor, like, seed)
        )

    def apply(
        gradient: Tree, state: CompressedMeanState, step: Step
    ) -> tuple[Tree, CompressedMeanState]:
        check_gradient(gradient, step.params)
        _check_workers(axes, workers, gradient, state.error)
        given = jax.tree.map(_real, gradient)
        if feedback:
            given = jax.tree.map(lambda g, e: g + e[0], given, state.error)
        key = random.fold_in(random.key(seed), step.count)
        exchanged = exchange_tree(compressor, given, state.memory, key, Wire(axes))
        unflatten = jax.tree.structure(gradient).unflatten
        means = unflatten([each.mean for each in exchanged])
        good = lax.pmin(_all_finite(given).astype(jnp.int32), axes) == 1
        good = good & _all_finite(means)
        result = jax.tree.map(lambda g, m: _as(g, jnp.where(good, m, jnp.nan)), gradient, means)
        error = state.error
        if feedback:
            sent = unflatten([each.sent for each in exchanged])
            error = jax.tree.map(
                lambda x, c, e: jnp.where(good, (x - c)[None], e), given, sent, error
            )
        memory = state.memory
        if compressor.start is not None:
            new = unflatten([each.memory for each in exchanged])
            memory = jax.tree.map(lambda x, old: jnp.where(good, x, old), new, memory)
        return result, CompressedMeanState(error, memory)

    options = {"compressor": compressor.name}
    return stage(NAME, Kind.GRADIENT, Kind.GRADIENT, apply, init=init, options=options)


def real_like(x: Any) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of what is sent of a leaf: in the compute dtype, and real."""
    return jax.eval_shape(_real, jax.ShapeDtypeStruct(x.shape, x.dtype))


def first_memory(compressor: Compressor, like: Tree, seed: int) -> Tree:
    """Return the first memory of a compressor, for each leaf an array, or None."""
    start = compressor.start
    if start is None:
        return None
    key = random.key(seed)
    return jax.tree_util.tree_map_with_path(lambda path, x: start(_key_of(key, path), x), like)


def exchange_tree(
    compressor: Compressor, tree: Tree, memory: Tree, key: jax.Array, wire: Wire
) -> list[Exchanged]:
    """Exchange each leaf; one without elements has nothing to tell."""
    leaves, structure = jax.tree_util.tree_leaves_with_path(tree), jax.tree.structure(tree)
    kept = [None] * len(leaves) if memory is None else structure.flatten_up_to(memory)
    return [
        compressor.exchange(x, old, _key_of(key, path), wire) if x.size else Exchanged(x, x, old)
        for (path, x), old in zip(leaves, kept, strict=True)
    ]


def _key_of(key: jax.Array, path: tuple[Any, ...]) -> jax.Array:
    """Make the key of a leaf, the same on all workers."""
    return numerics.key_of(key, path, jnp.zeros([]))


def _real(x: jax.Array) -> jax.Array:
    """Return a leaf in its compute dtype; of a complex one, both parts along a new last axis."""
    x = numerics.widen(x)
    parts = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return jnp.stack([lax.real(x), lax.imag(x)], axis=-1) if parts else x


def _as(gradient: jax.Array, x: jax.Array) -> jax.Array:
    """Undo ``_real``."""
    if jnp.issubdtype(gradient.dtype, jnp.complexfloating):
        return lax.complex(x[..., 0], x[..., 1])
    return x


def _all_finite(tree: Tree) -> jax.Array:
    found = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


def _feedback_of(compressor: Compressor, given: bool | None) -> bool:
    if given is None:
        return compressor.contracts
    switch("error_feedback", given)
    if given and not compressor.contracts:
        raise ValueError(
            f"error_feedback=True does not fit {compressor.name}: what it leaves out may be larger "
            "than the gradient, and the memory would grow. Leave error_feedback out, or take "
            "scaled_sign(), one_bit(), top_k(), random_k() or power_sgd()."
        )
    return given


def _size_of(axes: tuple[str, ...]) -> int | None:
    """Return the number of workers along the axes; None outside of them."""
    try:
        return Wire(axes).size
    except NameError:
        return None


def _check_workers(axes: tuple[str, ...], workers: int, gradient: Tree, error: Tree) -> None:
    size = _size_of(axes)
    if size is None:
        raise ValueError(
            f"axis_name={axes} is not around this update: call it inside jax.shard_map over the "
            "axis, or inside jax.vmap(..., axis_name=...)."
        )
    if size != workers:
        raise ValueError(
            f"workers={workers}, but there are {size} along the axis {axes}: give {size}."
        )
    for name, e in numerics.named_leaves(error):
        if e.shape[0] != 1:
            raise ValueError(
                f"a worker got {e.shape[0]} rows of the memory of {name!r}, not its own: give "
                "jax.shard_map the specs worker_specs(state, axis_name) for the state, or make the "
                "state under the same jax.vmap."
            )
    typed = numerics.varying_axes(lax.axis_index(axes))
    for name, g in numerics.named_leaves(gradient):
        if missing := sorted(typed - numerics.varying_axes(g)):
            raise ValueError(
                f"the gradient of {name!r} is the same along the axis {missing}: it has been "
                "summed over the workers already, as jax.grad does for parameters that all share. "
                f"Differentiate at jax.lax.pcast(params, {missing}, to='varying')."
            )
