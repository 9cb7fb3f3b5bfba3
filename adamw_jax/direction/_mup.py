"""Make rules of the maximal update parametrization (muP), so that a learning rate fits all widths.

Multipliers of the learning rate, with r the width of an axis divided by its width in the base model
(Yang et al., Tensor Programs V, arXiv 2203.03466, table 8; figures agree with microsoft/mup):

                                        Adam         SGD
    hidden weights (both axes grow)     1 / r_in     r_out / r_in
    input weights, biases, norms        1            r_out
    output weights                      1            r_in
    nothing grows                       1            1

>>> import jax.numpy as jnp
>>> base, wide = {"hidden": jnp.ones((64, 64))}, {"hidden": jnp.ones((256, 256))}
>>> mup(wide, base).tables[0].rules["hidden"]
Rule(learning_rate_factor=0.25, weight_decay_factor=4.0)
"""

from __future__ import annotations

import glob
from typing import Any

import jax
import numpy as np

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import one_of, switch
from adamw_jax.direction._rule import Rule
from adamw_jax.direction._rules import ParameterRules, parameter_rules

Tree = Any

OPTIMIZERS = ("adam", "sgd")
LAYOUTS = ("in_out", "out_in")


def mup(
    params: Tree,
    base_shapes: Tree,
    optimizer: str = "adam",
    *,
    layout: str = "in_out",
    stacked: masks.Mask = None,
    decay_follows_rate: bool = True,
) -> ParameterRules:
    """Scale the learning rate of each parameter by width, so that tuning a narrow model suffices.

    An axis grows if its width differs from that in the base model. The equations are above. The
    rules do the part of the optimizer. The model must do the rest, or the learning rate does not
    carry over:

    * Initialize hidden weights with variance proportional to 1 / fan_in, as most initializers do,
      and input weights and biases independently of the width.
    * Initialize output weights with a variance that does not depend on the width (that of the base
      model, or 0), and multiply the output by ``base width / width``.
    * If heads grow, divide the logits of attention by ``d / sqrt(base d)`` instead of ``sqrt(d)``,
      with d the size of a head.

    Args:
      params: parameters or their shapes.
      base_shapes: the parameters of the base model, or their shapes from ``jax.eval_shape``: the
        same tree, with the width for which the learning rate was tuned.
      optimizer: ``"adam"`` for optimizers whose step does not depend on the scale of the gradient,
        element by element (the Adam family, Lion, sign descent); ``"sgd"`` for SGD with or without
        momentum. Trust ratios (LAMB, LARS) scale by themselves.
      layout: of the two growing axes of a hidden weight, which is fan-in: ``"in_out"`` the first
        (Flax, Haiku: dense, convolution, attention), ``"out_in"`` the last (Equinox, PyTorch).
      stacked: the leaves whose first axis counts layers, as for ``kernels_only``; it is no width.
      decay_follows_rate: whether the recipe multiplies the decay by the learning rate (the forms
        ``"learning_rate"``, ``"corrected"`` and ``"proximal"``). Decay and L2 then get the inverse
        multiplier, so that the decay per step does not depend on the width. False for other forms.

    Returns:
      Rules by the names of the parameters; multiply them by others to combine them.

    Raises:
      ValueError: the trees differ, or more than two axes of a parameter grow.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> base = {"hidden": jnp.ones((64, 64))}
      >>> params = {"hidden": jnp.ones((256, 256))}
      >>> rules = aj.direction.mup(params, base)
      >>> tx = aj.adam(1e-3, rules=rules)
    """
    one_of("optimizer", optimizer, OPTIMIZERS)
    one_of("layout", layout, LAYOUTS)
    switch("decay_follows_rate", decay_follows_rate)
    now, base = (
        dict(numerics.named_leaves(numerics.as_arrays(tree))) for tree in (params, base_shapes)
    )
    if now.keys() != base.keys():
        raise ValueError(
            "base_shapes must be the parameters of the same model at the base width, but the "
            f"leaves {sorted(now.keys() ^ base.keys())} are in only one of the two."
        )
    layered = jax.tree.map(lambda _: False, params)
    if stacked is not None:
        layered = masks.resolve(stacked, params, "stacked")
    table = {}
    for (name, leaf), own in zip(now.items(), jax.tree.leaves(layered), strict=True):
        ratios = _ratios(name, np.shape(leaf)[own:], np.shape(base[name])[own:])
        rate = _multiplier(ratios if layout == "in_out" else ratios[::-1], optimizer)
        decay = 1.0 / rate if decay_follows_rate else 1.0
        table[glob.escape(name)] = Rule(learning_rate_factor=rate, weight_decay_factor=decay)
    return parameter_rules(table)


def _ratios(name: str, shape: tuple[int, ...], base: tuple[int, ...]) -> list[float]:
    """Return the ratios of the axes that grow, in order."""
    if len(shape) != len(base):
        raise ValueError(f"{name} has shape {shape}, but {base} in base_shapes: other axes.")
    ratios = [n / b for n, b in zip(shape, base, strict=True) if n != b]
    if len(ratios) > 2:
        raise ValueError(
            f"{name} has shape {shape}, but {base} in base_shapes: more than two axes grow, so "
            "fan-in and fan-out are not known. Keep the size of a head and the number of layers as "
            "in the base model, or name leaves whose first axis counts layers in stacked=."
        )
    return ratios


def _multiplier(ratios: list[float], optimizer: str) -> float:
    """Return the multiplier of the learning rate; ``ratios`` begins with fan-in if both grow."""
    if len(ratios) == 2:
        fan_in, fan_out = ratios
        return 1.0 / fan_in if optimizer == "adam" else fan_out / fan_in
    return ratios[0] if ratios and optimizer == "sgd" else 1.0
