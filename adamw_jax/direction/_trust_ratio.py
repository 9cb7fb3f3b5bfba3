"""Scale the step of each leaf in proportion to the norm of its parameters (LARS, LAMB).

    ratio = trust_coefficient |theta| / (|u| + eps)        1 if either norm is 0
    u <- ratio u                                           leaf by leaf

The step is then a fixed share of the parameters, whatever the scale of the gradient, so the
learning rate can grow with the batch size. LARS: You, Gitman & Ginsburg, 1708.03888; LAMB: You et
al., 1904.00962.

>>> import jax.numpy as jnp
>>> theta, u = jnp.array([3.0, 4.0]), jnp.array([0.0, 0.5])
>>> stage = scale_by_trust_ratio()
>>> stage.update(u, stage.init(theta), theta)[0]
Array([0., 5.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.declare import ScalarOrSchedule, bound, declare, nonnegative, positive
from adamw_jax._core.gradients import check_gradient, norms_of_leaves
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction._decay import decay_hyperparams, decay_rates, decay_settings
from adamw_jax.direction._rule import Factor
from adamw_jax.direction._rules import ParameterRules

Tree = Any

OF = ("direction", "gradient")


class RatioOfGradientState(NamedTuple):
    """Marks a state, without an array, whose moments are of gradients scaled by trust ratios."""


@shows_options
def scale_by_trust_ratio(
    trust_coefficient: ScalarOrSchedule | None = 1.0,
    eps: ScalarOrSchedule | None = 0.0,
    *,
    min_norm: ScalarOrSchedule | None = None,
    min_weight_norm: ScalarOrSchedule | None = None,
    max_weight_norm: ScalarOrSchedule | None = None,
    min_ratio: ScalarOrSchedule | None = None,
    max_ratio: ScalarOrSchedule | None = None,
    mask: masks.Mask = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: masks.Mask = None,
    rules: ParameterRules | None = None,
    of: str = "direction",
) -> Stage:
    """Scale each leaf by the ratio of its parameter's norm to its own norm.

    Norms are Euclidean, over the whole leaf, in float32 at least, and of |x| for complex leaves.
    Put a decay that shall be scaled before this stage. Put the learning rate after it, because the
    ratio would cancel it.

    Args:
      trust_coefficient: factor on the ratio, > 0, or a schedule of it: 1 in LAMB, 1e-3 in LARS;
        None for 1. (The first argument of ``optax.scale_by_trust_ratio`` is ``min_norm``.)
      eps: added to the norm of the direction, >= 0; None for nothing.
      min_norm: lower bound of both norms, >= 0 (optax's option). If it is above 0, a parameter of
        norm 0 has the ratio of this norm instead of 1.
      min_weight_norm: lower bound of the parameter's norm, >= 0; it also replaces a norm of 0.
      max_weight_norm: upper bound of the parameter's norm, > 0. The two bounds are LAMB's phi;
        other implementations use 0 and 10.
      min_ratio: lower bound of the ratio, >= 0, also if a norm is 0.
      max_ratio: upper bound of the ratio, > 0, also if a norm is 0.
      mask: which leaves are scaled; the others pass unchanged. A tree of bools, a function of the
        parameters such as ``kernels_only()``, or a pattern on leaf names such as ``"*/kernel"``.
      weight_decay: coefficient >= 0 of a decay that this stage adds itself, instead of a decay
        stage before it. The ratio then divides by the sum of the norms, not by the norm of the sum:
        trust_coefficient |theta| / (|u| + weight_decay |theta| + eps).
      weight_decay_mask: which leaves have that decay.
      rules: per-parameter multipliers of that decay.
      of: ``"direction"``, or ``"gradient"`` to put the stage before the moments, as in LARS.

    Returns:
      A stage *direction -> direction*, without state, or *gradient -> gradient*, which marks the
      state but has no array. It needs the parameters.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.scale_by_adam(),
      ...     aj.direction.scale_by_trust_ratio(),
      ...     aj.scale_by_learning_rate(1e-2),
      ... )
    """
    one_of("of", of, OF)
    declared = declare(
        trust_coefficient=positive._replace(reshapes_step=True).if_given(trust_coefficient),
        eps=nonnegative.if_given(eps),
        min_norm=nonnegative.if_given(min_norm),
        min_weight_norm=nonnegative.if_given(min_weight_norm),
        max_weight_norm=bound.if_given(max_weight_norm),
        min_ratio=nonnegative.if_given(min_ratio),
        max_ratio=bound.if_given(max_ratio),
        weight_decay=nonnegative.if_given(weight_decay),
    )
    if weight_decay is None and (weight_decay_mask is not None or rules is not None):
        raise ValueError(
            "weight_decay_mask and rules of scale_by_trust_ratio need weight_decay, the decay that "
            "it adds: give weight_decay, or leave them out."
        )

    def ratio(weight: jax.Array, length: jax.Array, step: Step) -> jax.Array:
        if "min_norm" in declared:
            weight, length = (lax.max(x, step["min_norm"]) for x in (weight, length))
        if "min_weight_norm" in declared:
            weight = lax.max(weight, step["min_weight_norm"])
        both = (weight > 0) & (length > 0)
        if "max_weight_norm" in declared:
            weight = lax.min(weight, step["max_weight_norm"])
        if "eps" in declared:
            length = length + step["eps"]
        found = weight / numerics.nonzero(length)
        if "trust_coefficient" in declared:
            found = step["trust_coefficient"] * found
        found = lax.select(both, found, jnp.ones_like(found))
        found = lax.max(found, step["min_ratio"]) if "min_ratio" in declared else found
        return lax.min(found, step["max_ratio"]) if "max_ratio" in declared else found

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        if of == "gradient":
            check_gradient(flow, step.params)
        one = jnp.ones([], numerics.default_float())

        def leaf(
            scale: bool, decay: Factor, u: jax.Array, p: jax.Array, length: Any, weight: Any
        ) -> Any:
            rate = None if not isinstance(decay, jax.Array) else decay
            if not scale and rate is None:
                return u, one
            decayed = numerics.widen(u)
            if rate is not None:
                decayed = lax.add(decayed, numerics.scaled(rate, numerics.widen(p)))
            if not scale:
                return decayed, one
            if rate is not None:
                length = length + rate * weight
            found = ratio(weight, length, step)
            return numerics.scaled(found, decayed), found

        scaled = masks.resolve(mask, step.params, "mask")
        decays = jax.tree.map(lambda _: 0.0, scaled)
        if weight_decay is not None:
            decays = decay_rates(weight_decay_mask, rules, step)
        some, theirs = (
            jax.tree.map(lambda scale, x: x if scale else None, scaled, tree)
            for tree in (flow, step.params)
        )
        lengths = norms_of_leaves(some, plain=step.in_sequence)
        weights = norms_of_leaves(theirs)
        both = jax.tree.map(leaf, scaled, decays, flow, step.params, lengths, weights)
        moved, ratios = (jax.tree.map(lambda _, x, i=i: x[i], scaled, both) for i in (0, 1))
        step.facts.leaf_scalars = masks.show(ratios, scaled)
        return moved, state

    def settings(params: Tree) -> dict[str, Tree]:
        scaled = masks.resolve(mask, params, "mask")
        words = {"trust ratio": jax.tree.map(lambda use: "yes" if use else "no", scaled)}
        if weight_decay is not None:
            words |= decay_settings("weight_decay", weight_decay_mask, rules)(params)
        return words

    kind = Kind(of)
    return stage(
        "scale_by_trust_ratio",
        kind,
        kind,
        apply,
        init=(lambda params: RatioOfGradientState()) if of == "gradient" else None,
        hyperparams=declared | decay_hyperparams(rules),
        needs_params=True,
        reduces=True,
        settings=settings,
    )
