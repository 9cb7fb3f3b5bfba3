"""KOALA: Kalman filters whose measurement is the loss.

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
    differs="neither optax nor PyTorch has it; with r=0 it is optax.polyak_sgd leaf by leaf and "
    "without a largest step.",
    lacks="its decay is in the loss, and its state is two scalars, no moments",
    within=("weight_decay", "mask", "rules"),
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
    """KOALA-V: a step that the loss and the gradient's norm set, with next to no state.

    ``update(gradients, state, params, value=loss)`` needs the loss; with it, ``value_sq_mean``, the
    mean over the batch of the squared losses of the examples, which sets the noise R. Without that
    the square of ``value`` stands in, which is less: R is then too small and steps are too long.
    Where gradients are accumulated give the mean loss, and undo a loss scale in both. A loss below
    ``target`` turns the step around: give a ``target`` below any loss where it may be negative.

    Args:
      learning_rate: factor on the step, a number, a schedule, or an object that carries several
        (``one_cycle(...)``); 1 (paper), times 0.2 at milestones.

    Returns:
      The transformation; its state is two scalars. P is shared by all leaves. A leaf whose gradient
      is shorter than 1e-9 stays still. Under ``optax.partition`` and ``optax.masked`` P is that of
      the leaves of the part.
    """
    o = CommonOptions(rules=rules)
    return finish(o, learning_rate, loss_filter(o.moving_rules, **own))


@register(
    title="KOALA-M",
    equation="theta <- theta + p, then by the loss: theta <- theta - lr P11 l / S e, "
    "p <- kappa p - lr P21 l / S e",
    citation=_CITATION,
    arxiv="2107.03331",
    direction=None,  # the velocity has the learning rate in it
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

    ``update(gradients, state, params, value=loss, value_sq_mean=...)`` as for ``koala_v``. The
    parameters that you hold are the predicted ones, where loss and gradient belong;
    ``eval_params(state, params)`` gives the estimate to evaluate on, before the prediction.

    Args:
      learning_rate: factor on the step and on the change of the velocity, a number, a schedule, or
        an object that carries several; 1 (paper), times 0.2 at milestones.

    Returns:
      The transformation; its state has two values per parameter. P is shared by all leaves. A leaf
      whose gradient is shorter than 1e-9 only coasts. Under ``optax.partition`` and
      ``optax.masked`` covariance and process noise are those of the leaves of the part. Lookahead
      or an average behind it would average predicted parameters: ``eval_params`` refuses to choose.
    """
    o = CommonOptions(rules=rules, state_dtype=state_dtype)
    moving = o.moving_rules if o.moving_rules and o.moving_rules.table else None
    filtered = momentum_filter(plain(learning_rate), moving, o.state_dtype, **own)
    return compose(store(filtered, storage), frozen=o.frozen)
