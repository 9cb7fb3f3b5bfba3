"""Build KOALA, Kalman filters that measure the loss.

    koala_v    theta <- theta - lr P (loss - target) / (P |g|^2 + R) g, leaf by leaf
    koala_m    the same for parameters that move with a velocity

Davtyan et al., AAAI 2022, arXiv 2107.03331. Both need the loss: give it to ``update``.

>>> import jax.numpy as jnp
>>> tx = koala_v(r=0.0)                                           # Polyak's step
>>> params = jnp.array([3.0, 4.0])                                # loss |theta|
>>> updates, state = tx.update(params / 5, tx.init(params), params, value=jnp.float32(5.0))
>>> updates
Array([-3., -4.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate
from adamw_jax.direction import ParameterRules
from adamw_jax.moments import loss_filter, momentum_filter
from adamw_jax.moments._loss_filter import LossFilterOptions
from adamw_jax.moments._momentum_filter import MomentumFilterOptions
from adamw_jax.optimizers._common import CommonOptions, finish, plain
from adamw_jax.optimizers._registry import register
from adamw_jax.storage._stages import store

_CITATION = (
    "Davtyan, Sameni, Cerkezi, Meishvili, Bielski & Favaro, KOALA: A Kalman Optimization Algorithm "
    "with Loss Adaptivity, AAAI 2022"
)


@register(
    title="KOALA-V",
    equation="theta <- theta - lr P l / S g, S = P |g|^2 + R, P <- P + q before, P R / S after",
    citation=_CITATION,
    arxiv="2107.03331",
    state_values=0,
    differs="neither optax nor PyTorch has it; with r=0 it is optax.polyak_sgd for each leaf, "
    "without an upper bound of the step.",
    lacks="its decay is in the loss, and its state is two scalars, not moments",
    in_direction=("weight_decay", "mask", "rules"),
    needs=("value",),
    degree=None,
    scope="tree",
)
def koala_v(
    learning_rate: LearningRate = 1.0,
    *,
    rules: ParameterRules | None = None,
    **own: Unpack[LossFilterOptions],
) -> Composed:
    """KOALA-V: a step set by the loss and the norm of the gradient, with hardly any state.

    ``update(gradients, state, params, value=loss)`` needs the loss. Give also ``value_sq_mean``,
    the mean over the batch of the squared losses of the examples, which sets the noise R. Without
    it the square of ``value`` is used, which is smaller, so R is too small and steps are too long.
    If gradients are accumulated, give the mean loss. If the loss is scaled, undo this in losses and
    gradients. A loss below ``target`` reverses the step, so for losses that may be negative give a
    ``target`` below all of them.

    Args:
      learning_rate: factor on the step, a number, a schedule, or an object of several schedules
        (``one_cycle(...)``); 1 (paper), multiplied by 0.2 at milestones.

    Returns:
      The transformation; its state is two scalars. P is shared by all leaves, under
      ``optax.partition`` and ``optax.masked`` by those of its part. A leaf whose gradient has a
      norm below 1e-9 does not move.
    """
    o = CommonOptions(rules=rules)
    return finish(o, learning_rate, loss_filter(o.rules, **own))


@register(
    title="KOALA-M",
    equation="theta <- theta + p, then by the loss: theta <- theta - lr P11 l / S e, "
    "p <- kappa p - lr P21 l / S e",
    citation=_CITATION,
    arxiv="2107.03331",
    direction=None,  # the velocity includes the learning rate
    state_values=2,
    differs="neither optax nor PyTorch has it.",
    lacks="its decay is in the loss, and it has no second moment",
    needs=("value",),
    degree=None,
    scope="tree",
)
def koala_m(
    learning_rate: LearningRate = 1.0,
    *,
    rules: ParameterRules | None = None,
    state_dtype: Any = None,
    storage: Any = None,
    **own: Unpack[MomentumFilterOptions],
) -> Composed:
    """KOALA-M: a Kalman filter of the parameters and their velocity.

    Call ``update(gradients, state, params, value=loss, value_sq_mean=...)`` as for ``koala_v``. The
    parameters between steps are predictions; compute loss and gradient there. To evaluate, use
    ``eval_params(state, params)``, the estimate before the prediction.

    Args:
      learning_rate: factor on the step and on the change of the velocity, a number, a schedule, or
        an object of several schedules; 1 (paper), multiplied by 0.2 at milestones.

    Returns:
      The transformation; its state has two values per parameter. P and the process noise are shared
      by all leaves, under ``optax.partition`` and ``optax.masked`` by those of its part. A leaf
      whose gradient has a norm below 1e-9 moves only by its velocity. Do not put Lookahead or an
      average after it: they would average predictions, and ``eval_params`` raises an error.
    """
    o = CommonOptions(rules=rules, state_dtype=state_dtype)
    filtered = momentum_filter(plain(learning_rate), o.rules, o.state_dtype, **own)
    return compose(store(filtered, storage), frozen=o.frozen)
