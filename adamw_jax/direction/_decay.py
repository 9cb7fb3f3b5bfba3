"""Decay weights, by L2 in the gradient or decoupled from it (Loshchilov & Hutter, 1711.05101).

    l2              g        <- g + l2 theta                       (enters the moments)
    learning_rate   theta'   = theta - lr_t (direction + wd theta)          (PyTorch, optax, fastai)
    schedule        theta'   = theta - lr_t direction - (lr_t / lr_0) wd theta        (the paper)
    corrected       theta'   = theta - lr_t direction - (lr_t^2 / lr_0) wd theta          (AdamC)
    fixed           theta'   = theta - lr_t direction - wd theta
    proximal        theta'   = (theta - lr_t direction) / (1 + lr_t wd)
    inside          theta'   = theta - buffer - lr_t wd theta       (the buffer includes lr_t)

theta are the parameters before the step, wd the coefficient, lr_t the learning rate at step t and
lr_0 its peak. In the form *schedule* the decay follows the shape of the learning-rate schedule but
not its scale: at a peak of 1e-3, wd = 0.1 in the form *learning_rate* equals wd = 1e-4 here.

The form *corrected* is for layers before a normalization (Defazio 2025, arXiv 2506.02285). With
*learning_rate* the gradients of such layers grow at the end of a schedule that falls to 0, because
the norm at which step and decay balance depends on lr_t.

With ``cautious=True`` wd theta is 0 where theta and the direction have opposite signs: the decay
never works against the step (Chen et al. 2025, arXiv 2510.12402).

>>> decoupled_decay(0.1).spec.kinds
'direction -> direction'
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number, one_of, switch
from adamw_jax._core.declare import (
    Hyperparameter,
    ScalarOrSchedule,
    declare,
    length,
    nonnegative,
    positive,
)
from adamw_jax._core.gradients import check_gradient
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import leafwise
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction._rule import Factor, LeafRules, Rule, product, value_at
from adamw_jax.direction._rules import ParameterRules, rules_of, values_of

Tree = Any

FORMS = ("learning_rate", "schedule", "corrected", "fixed", "proximal")
OF_PEAK = ("schedule", "corrected")
"""Forms that divide by the peak of the learning rate."""
SCALED = ("corrected", "proximal", "inside")
"""Forms that multiply by the learning rate themselves."""
READS_RATE = ("schedule", *SCALED)
"""Forms that read the learning rate."""


@shows_options
def l2_decay(
    l2: ScalarOrSchedule,
    mask: masks.Mask = None,
    *,
    rules: ParameterRules | None = None,
    rate_name: str = "l2",
) -> Stage:
    """Add ``l2 * theta`` to the gradient before the moments see it (L2 regularisation).

    Args:
      l2: coefficient >= 0 of the loss term l2/2 |theta|^2, or a schedule of it.
      mask: which leaves decay, as for ``decoupled_decay``.
      rules: per-parameter coefficients.
      rate_name: name of the coefficient for ``set_hyperparams``: ``"l2"``, or ``"weight_decay"`` as
        in LARS.

    Returns:
      A stage *gradient -> gradient*; it needs the parameters.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.l2_decay(1e-4), aj.adam(1e-3))
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        check_gradient(gradient, step.params)

        def leaf(rate: Factor, g: jax.Array, p: jax.Array) -> jax.Array:
            if not isinstance(rate, jax.Array):
                return g
            return lax.add(numerics.widen(g), numerics.scaled(rate, numerics.widen(p)))

        rates = decay_rates(mask, rules, step, rate_name)
        return jax.tree.map(leaf, rates, gradient, step.params), state

    return stage(
        "l2_decay",
        Kind.GRADIENT,
        Kind.GRADIENT,
        apply,
        hyperparams=declare(**{rate_name: nonnegative(l2)}) | decay_hyperparams(rules),
        needs_params=True,
        settings=decay_settings(rate_name, mask, rules),
    )


@shows_options
def decoupled_decay(
    weight_decay: ScalarOrSchedule,
    mask: masks.Mask = None,
    form: str = "learning_rate",
    *,
    learning_rate: ScalarOrSchedule | None = None,
    base_learning_rate: float | None = None,
    rules: ParameterRules | None = None,
    cautious: bool = False,
) -> Stage:
    """Decay the weights without passing the decay through the moments.

    Args:
      weight_decay: coefficient >= 0, or a schedule of it.
      mask: which leaves decay: a tree of bools, a function of the parameters, or a pattern on leaf
        names such as ``"*/kernel"``; None for all. The other leaves take the step without decay.
      form: ``"learning_rate"`` (put the stage before the learning rate), or ``"schedule"``,
        ``"corrected"``, ``"fixed"``, ``"proximal"`` or ``"inside"`` (put it after the learning
        rate); the equations are above.
      learning_rate: the recipe's learning rate, needed by all forms but the first and ``"fixed"``.
      base_learning_rate: the peak lr_0 by which the two forms divide that have it, > 0. Needed if
        ``learning_rate`` is a schedule or an array (as from ``optax.inject_hyperparams``); a number
        is its own peak.
      rules: per-parameter coefficients, and learning rates for the forms that read it.
      cautious: decay only elements that have the sign of the direction, which moves them towards 0,
        or whose direction is 0. For complex elements: if the real part of conj(direction) theta is
        not negative.

    Returns:
      A stage *direction -> direction* for ``"learning_rate"``, otherwise *update -> update*. It
      needs the parameters.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.scale_by_adam(),
      ...     aj.decoupled_decay(0.1, mask="kernel"),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    one_of("form", form, (*FORMS, "inside"))
    switch("cautious", cautious)
    reads_rate = form in READS_RATE
    declared = declare(weight_decay=nonnegative(weight_decay))
    declared |= decay_hyperparams(rules, with_learning_rate=reads_rate)
    if reads_rate:
        if learning_rate is None:
            raise ValueError(f"form={form!r} needs learning_rate: give that of the recipe.")
        declared |= declare(learning_rate=length(learning_rate))
    base = _base(form, learning_rate, base_learning_rate, rules) if form in OF_PEAK else None
    late = form != "learning_rate"

    def rates_of(step: Step) -> Tree:
        """Return the coefficient of each leaf with the learning rate in it."""
        rates = decay_rates(mask, rules, step)
        if base is not None:
            rates = jax.tree.map(_both, rates, _shares_of_peak(rules, base, step))
        if form in SCALED:
            lengths = values_of(rules, "learning_rate", step, step.params)
            rates = jax.tree.map(_both, rates, lengths)
        return rates

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        def leaf(decay: Factor, skipped: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            if not isinstance(decay, jax.Array):
                return u
            if skipped is not False:  # no decay in a step that rectify_variance skips
                decay = lax.select(skipped, jnp.zeros_like(decay), decay)
            wide = numerics.widen(u)
            decayed = (lax.sub if late else lax.add)(
                wide, numerics.scaled(decay, numerics.widen(p))
            )
            if form == "proximal":
                # (u + p) / (1 + d) - p without cancellation.
                decayed = numerics.scaled(1 / (1 + decay), decayed)
            if not cautious:
                return decayed
            agree = numerics.agreement(u, p)  # an update is minus a direction
            return lax.select(lax.le(agree, 0.0) if late else lax.ge(agree, 0.0), decayed, wide)

        skipped = False if step.facts.skip_step is None else step.facts.skip_step
        return jax.tree.map(leaf, rates_of(step), leafwise(skipped, flow), flow, step.params), state

    kind = Kind.UPDATE if late else Kind.DIRECTION
    return stage(
        "decoupled_decay",
        kind,
        kind,
        apply,
        hyperparams=declared,
        needs_params=True,
        settings=decay_settings("weight_decay", mask, rules),
    )


def normalized_decay(norm: float, updates: float) -> float:
    """Return ``norm / sqrt(updates)``, so that one ``norm`` suits short and long runs.

    Args:
      norm: normalised decay, dimensionless, >= 0; the authors used 0.025 to 0.05 (1711.05101,
        appendix B.1).
      updates: number of updates in the run (or in a period between warm restarts), > 0: epochs
        times training points divided by the batch size.

    Returns:
      A coefficient for the form ``"schedule"``, which is the paper's.

    >>> round(normalized_decay(0.05, updates=100 * 50_000 / 128), 6)
    0.000253
    """
    return number("norm", norm, least=0) / math.sqrt(number("updates", updates, above=0))


def _base(form: str, learning_rate: Any, base: float | None, rules: ParameterRules | None) -> Any:
    """Return the peak of the learning rate; check that it is known, also for each rule."""
    for rule in () if rules is None else rules.all:
        if callable(rule.learning_rate) and rule.base_learning_rate is None:
            raise ValueError(
                f'decay="{form}" divides the learning-rate schedule of a rule by its peak: give '
                f"the peak as base_learning_rate to {rule}."
            )
    if base is not None:
        if callable(base):
            raise TypeError(f"base_learning_rate must be a number, not the schedule {base!r}.")
        declare(base_learning_rate=positive(base))
        return base
    if callable(learning_rate):
        raise ValueError(
            f'decay="{form}" divides the learning-rate schedule by its peak: give the peak as '
            "base_learning_rate."
        )
    if isinstance(learning_rate, jax.Array):
        raise ValueError(
            f'decay="{form}" divides by the peak of the learning rate, but the learning rate is '
            f"the array {learning_rate!r}, which may be the value of one step (as from "
            "optax.inject_hyperparams): give the peak as base_learning_rate."
        )
    return learning_rate


def _shares_of_peak(rules: ParameterRules | None, base: Any, step: Step) -> Tree:
    """Return the learning rate of each leaf without multipliers, as a share of its peak."""

    @functools.cache  # once for all leaves
    def share(rule: Rule | None) -> jax.Array:
        if rule is None:
            return step["learning_rate"] / numerics.nonzero(numerics.scalar(base))
        peak = rule.learning_rate if rule.base_learning_rate is None else rule.base_learning_rate
        now = numerics.scalar(value_at(rule, "learning_rate", step))
        return now / numerics.nonzero(numerics.scalar(peak))

    found = rules_of(rules, step.params)
    return jax.tree.map(lambda leaf: share(leaf.own("learning_rate")), found)


def _both(rate: Factor, other: Factor) -> Factor:
    return product([rate, other])


def decay_rates(
    mask: masks.Mask, rules: ParameterRules | None, step: Step, name: str = "weight_decay"
) -> Tree:
    """Return the coefficient of each leaf; the number 0 if it does not decay.

    A stage that calls this declares ``decay_hyperparams`` and ``decay_settings``. ``name`` is that
    of the coefficient in the stage.
    """
    chosen = masks.resolve(mask, step.params, "mask")
    rates = values_of(rules, "weight_decay", step, step.params, name)
    return jax.tree.map(lambda use, rate: rate if use else 0.0, chosen, rates)


def decay_hyperparams(
    rules: ParameterRules | None, with_learning_rate: bool = False
) -> dict[str, Hyperparameter]:
    """Return the hyperparameters of the live groups that a stage with ``decay_rates`` reads."""
    if rules is None:
        return {}
    return rules.declared("weight_decay") | (
        rules.declared("learning_rate") if with_learning_rate else {}
    )


def decay_settings(
    column: str, mask: masks.Mask, rules: ParameterRules | None
) -> Callable[[Tree], dict[str, Tree]]:
    """Make the declaration ``settings`` of a stage that decays."""

    def settings(params: Tree) -> dict[str, Tree]:
        found = masks.resolve(mask, params, "mask")
        if rules is None:
            return {column: jax.tree.map(lambda use: "yes" if use else "no", found)}

        def words(use: bool, leaf: LeafRules) -> str:
            shown = leaf.shown("weight_decay")
            if not use or shown == "0":
                return "no"
            if leaf.own("weight_decay"):
                return shown
            return "yes" if shown == "1" else f"yes, x {shown}"

        return {column: jax.tree.map(words, found, rules.for_tree(params))}

    return settings
