"""Measure the gradient noise scale inside the training step.

    |G|^2     <- average of (B |g_B|^2 - b |g_b|^2) / (B - b)
    tr Sigma  <- average of (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)

A step of B examples consists of micro-batches of b examples, computed on several devices or
accumulated. In addition to the mean gradient g_B, the update gets the extra argument
``micro_square_norm``, one scalar: the mean of the squared norms |g_b|^2 of the micro-batches. Where
to get it:

    accumulated over a scan      carry the sum of ``optax.tree.norm(g, squared=True)``
    stacked micro-gradients      ``micro_square_norms(gradients)[0]``
    over devices                 ``jax.lax.pmean`` of the local gradient's squared norm
    ``optax.MultiSteps``         ``with_micro_norms(multi_steps)`` passes it

Put the stage before any clipping, because both norms must be those of the raw gradients. The batch
sizes are not checked, except that ``with_micro_norms`` checks their ratio if ``MultiSteps``
accumulates a fixed number of micro-batches.

McCandlish, Kaplan, Amodei et al. 2018, arXiv 1812.06162; they use similar decay rates.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw, compose
>>> tx = compose(measure_noise_scale(small_batch=8, big_batch=64), adamw(1e-3))
>>> params = jnp.zeros(4)
>>> square = jnp.float32(6.0)                             # tr Sigma / 8 + |G|^2
>>> _, state = tx.update(jnp.ones(4), tx.init(params), params, micro_square_norm=square)
>>> print(read_noise_scale(state).scale.round(1))
4.9
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, whole_number
from adamw_jax._core.gradients import check_gradient, square_norm_of_tree
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail
from adamw_jax._core.state import find
from adamw_jax.diagnostics._noise_scale import NoiseScale, gradient_noise_scale

Tree = Any

NAME = tail("measure_noise_scale")


class NoiseMeterState(NamedTuple):
    """State of ``measure_noise_scale``, three scalars of the default float dtype.

    Attributes:
      gradient_square: the average of |G|^2, times ``weight_sum``.
      noise_trace: the average of tr Sigma, times ``weight_sum``.
      weight_sum: the sum of the weights in both averages; it starts at 0 and approaches 1.
    """

    gradient_square: jax.Array
    noise_trace: jax.Array
    weight_sum: jax.Array


class MicroNormsState(NamedTuple):
    """State of ``with_micro_norms``.

    Attributes:
      total: the sum of the squared norms of the micro-gradients of the current step so far.
      inner: the state of ``optax.MultiSteps``.
    """

    total: jax.Array
    inner: optax.MultiStepsState


def measure_noise_scale(small_batch: int, big_batch: int, *, decay: float = 0.99) -> Stage:
    """Average signal and noise of the gradient, which stays unchanged.

    Args:
      small_batch: b, examples in a micro-batch, >= 1.
      big_batch: B, examples in a step, > b.
      decay: decay rate of both averages, in [0, 1); 0.99 averages over about 100 steps.

    Returns:
      A stage *gradient -> gradient* for the beginning of a recipe, before any clipping, with three
      scalars of state. Its ``update`` needs ``micro_square_norm``. Measurements that are not finite
      are left out.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.diagnostics.measure_noise_scale(32, 256), aj.adamw(1e-3))
    """
    small = whole_number("small_batch", small_batch)
    big = whole_number("big_batch", big_batch, least=small + 1)
    keep = number("decay", decay, least=0, below=1)

    def init(params: Tree) -> NoiseMeterState:
        del params
        return NoiseMeterState(*(jnp.zeros([], numerics.default_float()) for _ in range(3)))

    def apply(gradient: Tree, state: NoiseMeterState, step: Step) -> tuple[Tree, NoiseMeterState]:
        check_gradient(gradient, step.params)
        square = step.extra.get("micro_square_norm")
        if square is None or jnp.shape(square) != ():
            raise ValueError(
                "measure_noise_scale needs micro_square_norm, the mean of |g|^2 over the "
                f"micro-batches, a scalar; got {square!r}. Call tx.update(gradients, state, "
                "params, micro_square_norm=...), or wrap optax.MultiSteps in with_micro_norms."
            )
        pieces = step.extra.get("micro_batches")
        if pieces is not None and pieces * small != big:
            raise ValueError(
                f"optax.MultiSteps accumulates {pieces} micro-batches of small_batch={small} "
                f"examples, which makes steps of {pieces * small}, not big_batch={big}: change one."
            )
        seen = lax.stop_gradient((numerics.scalar(square), square_norm_of_tree(gradient)))
        found = gradient_noise_scale(*seen, small, big)
        measured = NoiseMeterState(*found, jnp.ones_like(state.weight_sum))
        usable = jnp.isfinite(found.gradient_square) & jnp.isfinite(found.noise_trace)
        return gradient, jax.tree.map(
            lambda old, new: lax.select(usable, keep * old + (1.0 - keep) * new, old),
            state,
            measured,
        )

    # NAME is declared as a tail: migrate_state may add or drop this state.
    return stage(NAME, Kind.GRADIENT, Kind.GRADIENT, apply, init=init)


def read_noise_scale(state: Any) -> NoiseScale:
    """Return the averages of ``measure_noise_scale`` from the state of an optimizer.

    Args:
      state: the state of an optimizer with that stage, under any wrapper.

    Returns:
      A ``NoiseScale``; both averages are 0 before the first measurement.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.compose(aj.diagnostics.measure_noise_scale(32, 256), aj.adamw(1e-3))
      >>> _, state = tx.update(params, tx.init(params), params, micro_square_norm=4.0)
      >>> found = aj.diagnostics.read_noise_scale(state)
    """
    found = find(state, NoiseMeterState)
    if len(found) != 1:
        raise ValueError(
            f"the state must hold one measure_noise_scale, got {[path for path, _ in found]}: use "
            "compose(measure_noise_scale(...), ...), or pass the part of the state with one."
        )
    kept = numerics.on_device(found[0][1])
    weight_sum = numerics.nonzero(kept.weight_sum)
    return NoiseScale(kept.gradient_square / weight_sum, kept.noise_trace / weight_sum)


def with_micro_norms(multi_steps: optax.MultiSteps) -> optax.GradientTransformationExtraArgs:
    """Wrap ``optax.MultiSteps`` so that it passes ``micro_square_norm`` to its optimizer.

    Args:
      multi_steps: an ``optax.MultiSteps`` around a recipe with ``measure_noise_scale``, which
        accumulates means (the default). A fixed number of micro-batches must be B / b of that
        stage; a schedule for this number is not checked.

    Returns:
      A transformation that takes micro-gradients as ``multi_steps`` does, with one more scalar of
      state. Micro-steps that ``should_skip_update_fn`` skips do not count.

    Example:
      >>> import optax, adamw_jax as aj
      >>> meter = aj.compose(aj.diagnostics.measure_noise_scale(32, 128), aj.adamw(1e-3))
      >>> tx = aj.diagnostics.with_micro_norms(optax.MultiSteps(meter, every_k_schedule=4))
    """
    if not isinstance(multi_steps, optax.MultiSteps):
        raise TypeError(f"with_micro_norms takes an optax.MultiSteps(...), got {multi_steps!r}.")

    # optax wraps a fixed number in a schedule that returns this int.
    every = getattr(multi_steps, "_every_k_schedule", lambda step: None)(jnp.zeros([], jnp.int32))
    known = {"micro_batches": every} if isinstance(every, int) else {}

    def init(params: Tree) -> MicroNormsState:
        return MicroNormsState(jnp.zeros([], numerics.default_float()), multi_steps.init(params))

    def update(updates: Tree, state: MicroNormsState, params: Tree | None = None, **extra: Any):
        total = state.total + square_norm_of_tree(updates)
        before = state.inner
        mean = total / (numerics.scalar(before.mini_step) + 1.0)
        updates, inner = multi_steps.update(
            updates, before, params, **{**extra, **known, "micro_square_norm": mean}
        )
        stepped = inner.gradient_step != before.gradient_step
        skipped = ~stepped & (inner.mini_step == before.mini_step)
        going_on = lax.select(skipped, state.total, total)
        return updates, MicroNormsState(lax.select(stepped, jnp.zeros_like(total), going_on), inner)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
