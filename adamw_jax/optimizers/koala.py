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

from adamw_jax.checks import one_of
from adamw_jax.compose import Composed, compose, store
from adamw_jax.decay import FORMS
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.kalman import loss_filter, momentum_filter
from adamw_jax.masks import Mask
from adamw_jax.optimizers.common import Common, finish, moving_rules, refuse, unpack
from adamw_jax.optimizers.registry import register
from adamw_jax.rules import ParameterRules

_CITATION = (
    "Davtyan, Sameni, Cerkezi, Meishvili, Bielski & Favaro, KOALA: A Kalman Optimization Algorithm "
    "with Loss Adaptivity, AAAI 2022"
)
_REFUSES = (
    "decay", "base_learning_rate", "l2", "amsgrad", "rectify", "eps_hat", "bias_correction"
)  # fmt: skip


def scale_by_koala_v(
    *,
    sigma: float = 0.1,
    q: ScalarOrSchedule = 1.0,
    r: ScalarOrSchedule | None = None,
    alpha_r: ScalarOrSchedule = 0.9,
    target: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay_in_direction: bool = False,
    stacked: Mask = None,
    per_leaf: bool = True,
    rules: ParameterRules | None = None,
) -> Composed:
    """KOALA-V's direction: gradient in, direction out; needs ``value``. Arguments as ``koala_v``.

    Of ``rules`` the multipliers of the decay are read here.
    """
    return compose(
        loss_filter(
            sigma=sigma,
            q=q,
            r=r,
            alpha_r=alpha_r,
            target=target,
            weight_decay=weight_decay,
            mask=mask,
            decay_in_direction=decay_in_direction,
            stacked=stacked,
            per_leaf=per_leaf,
            rules=rules,
        )
    )


@register(
    title="KOALA-V",
    equation="theta <- theta - lr P l / S g, S = P |g|^2 + R, P <- P + q before, P R / S after",
    citation=_CITATION,
    arxiv="2107.03331",
    direction=scale_by_koala_v,
    state_values=0,
    differs="neither optax nor PyTorch has it; with r=0 it is optax.polyak_sgd leaf by leaf and "
    "without a largest step.",
    refuses=(*_REFUSES, "state_dtype", "storage"),
    needs=("value",),
    degree=None,
    scope="tree",
)
def koala_v(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    sigma: float = 0.1,
    q: ScalarOrSchedule = 1.0,
    r: ScalarOrSchedule | None = None,
    alpha_r: ScalarOrSchedule = 0.9,
    target: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay_in_direction: bool = False,
    stacked: Mask = None,
    per_leaf: bool = True,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: two have a place here
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
      sigma: variance P before the first step, >= 0; 0.1 (training script; the class has 1).
      q: process noise, by which P grows at every step, >= 0; 1 (code).
      r: measurement noise R, >= 0; None learns it: an average of ``value_sq_mean`` from 1.
      alpha_r: decay rate of that average, in [0, 1); 0.9 (paper).
      target: the loss to be reached; 0.
      weight_decay: coefficient of the term wd/2 |theta|^2 of the loss of a leaf, a number or
        schedule; None for none. As in the authors' code it enters the loss and the norm.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      decay_in_direction: step along the gradient of the loss with that term, g + wd theta; the
        authors step along g.
      stacked: which leaves stack layers along their first axis (``nnx.scan``), so that each layer
        has its own S; given like ``mask``. None for no leaf.
      per_leaf: every leaf is a layer with its own S (the paper's layer-wise form, and the code's);
        False gives all leaves together one S.

    Returns:
      The transformation; its state is two scalars. P is shared by all leaves. A leaf whose gradient
      is shorter than 1e-9 stays still. Under ``optax.partition`` and ``optax.masked`` P is that of
      the leaves of the part.
    """
    given: Any = {"weight_decay": weight_decay, "mask": mask, **common}
    learning_rate, _, _, given = unpack(learning_rate, None, None, given)
    weight_decay, mask, rules, small = _own("koala_v", given, common)
    refuse("koala_v", "has two scalars of state", **small)
    direction = scale_by_koala_v(
        sigma=sigma,
        q=q,
        r=r,
        alpha_r=alpha_r,
        target=target,
        weight_decay=weight_decay,
        mask=mask,
        decay_in_direction=decay_in_direction,
        stacked=stacked,
        per_leaf=per_leaf,
        rules=moving_rules(rules),
    )
    return finish(direction, learning_rate, rules=rules)


@register(
    title="KOALA-M",
    equation="theta <- theta + p, then by the loss: theta <- theta - lr P11 l / S e, "
    "p <- kappa p - lr P21 l / S e",
    citation=_CITATION,
    arxiv="2107.03331",
    direction=None,  # the velocity has the learning rate in it
    state_values=2,
    differs="neither optax nor PyTorch has it.",
    refuses=_REFUSES,
    needs=("value",),
    degree=None,
    scope="tree",
)
def koala_m(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    sw: float = 0.1,
    sv: float = 0.1,
    sc: float = 0.0,
    kappa: ScalarOrSchedule = 0.9,
    qw: float = 0.01,
    qv: ScalarOrSchedule = 0.01,
    r: ScalarOrSchedule | None = None,
    alpha_r: ScalarOrSchedule = 0.9,
    target: ScalarOrSchedule = 0.0,
    squared_drift: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    stacked: Mask = None,
    per_leaf: bool = True,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: two have a place here
) -> Composed:
    """KOALA-M: a Kalman filter of the parameters and their velocity.

    ``update(gradients, state, params, value=loss, value_sq_mean=...)`` as for ``koala_v``. The
    parameters that you hold are the predicted ones, where loss and gradient belong;
    ``eval_params(state, params)`` gives the estimate to evaluate on, before the prediction.

    Args:
      learning_rate: factor on the step and on the change of the velocity, a number, a schedule, or
        an object that carries several; 1 (paper), times 0.2 at milestones.
      sw: variance of the parameters before the first step, >= 0; 0.1 (code), as for ``sv``.
      sv: variance of the velocity before it, >= 0.
      sc: their covariance before it; 0 (code).
      kappa: factor on the velocity, in [0, 1]; 0.9 (paper).
      qw: process noise of the parameters before the first step, >= 0; 0.01 (code). Then it follows
        the distance of the parameters to their running average, over the number of parameters.
      qv: process noise of the velocity, >= 0; 0.01 (code).
      r: measurement noise R, >= 0; None learns it: an average of ``value_sq_mean`` from 1.
      alpha_r: decay rate of that average, in [0, 1); 0.9 (paper).
      target: the loss to be reached; 0.
      squared_drift: the paper's process noise, the squared distance to a running average that
        starts at the parameters and holds the present ones. The authors' code averages the distance
        itself, and its running average starts at 0.
      weight_decay: coefficient of the term wd/2 |theta|^2 of the loss of a leaf, a number or
        schedule; None for none. It enters loss, norm and direction.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      stacked: which leaves stack layers along their first axis (``nnx.scan``), so that each layer
        has its own S; given like ``mask``. None for no leaf.
      per_leaf: every leaf is a layer with its own S (the paper's layer-wise form, and the code's);
        False gives all leaves together one S.

    Returns:
      The transformation; its state has two values per parameter. P is shared by all leaves. A leaf
      whose gradient is shorter than 1e-9 only coasts. Under ``optax.partition`` and
      ``optax.masked`` covariance and process noise are those of the leaves of the part. Lookahead
      or an average behind it would average predicted parameters: ``eval_params`` refuses to choose.
    """
    given: Any = {"weight_decay": weight_decay, "mask": mask, **common}
    learning_rate, _, _, given = unpack(learning_rate, None, None, given)
    weight_decay, mask, rules, small = _own("koala_m", given, common)
    moving = moving_rules(rules)
    filtered = momentum_filter(
        learning_rate,
        sw=sw,
        sv=sv,
        sc=sc,
        kappa=kappa,
        qw=qw,
        qv=qv,
        r=r,
        alpha_r=alpha_r,
        target=target,
        squared_drift=squared_drift,
        weight_decay=weight_decay,
        mask=mask,
        stacked=stacked,
        per_leaf=per_leaf,
        rules=moving if moving is not None and moving.table else None,
        dtype=storage_dtype("state_dtype", small["state_dtype"]),
    )
    filtered = store(filtered, small["storage"])
    return compose(filtered, frozen=rules.frozen if rules is not None and rules.freezes else None)


def _own(
    name: str, given: Any, common: Common
) -> tuple[ScalarOrSchedule | None, Mask, ParameterRules | None, dict[str, Any]]:
    """Decay, mask, rules and small state; every other common keyword must be at its default.

    ``given`` has what the learning rate carries, too: a 1cycle brings a base rate, unasked.
    """
    rest = dict(given)
    weight_decay, mask = rest.pop("weight_decay"), rest.pop("mask")
    rules = rest.pop("rules", None)
    small = {name: rest.pop(name, None) for name in ("state_dtype", "storage")}
    moving_rules(rules)
    form = rest.pop("decay", FORMS[0])
    one_of("decay", form, FORMS)
    rest.pop("bias_correction", None)
    rest.pop("base_learning_rate", None)
    refuse(
        name,
        "has its decay in the loss",
        decay=form != FORMS[0],
        l2=rest.pop("l2", None) is not None,
        base_learning_rate=common.get("base_learning_rate") is not None,
    )
    refuse(name, "has no second moment", **rest)
    return weight_decay, mask, rules, small
