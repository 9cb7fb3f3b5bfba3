"""The learning rate for another batch size.

    linear   lr' = lr k,          k = new batch / old batch
    sqrt     lr' = lr sqrt(k)

Linear for SGD while gradient noise limits the step (Goyal et al. 2017, arXiv 1706.02677); the
square root for adaptive methods (Krizhevsky 2014, arXiv 1404.5997; Granziol, Zohren & Roberts, JMLR
2022, arXiv 2006.09092). Both stop to help once curvature limits the step: see
``diagnostics.batch_hessian_extreme`` and ``diagnostics.gradient_noise_scale`` for where that is.

>>> scale_learning_rate(0.1, 128, 512)
0.4
>>> legw(0.1, 1.0, old_batch=128, new_batch=512)
(0.2, 4.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from adamw_jax._core.checks import number, one_of
from adamw_jax._core.declare import declare, length

RULES: dict[str, Callable[[float], float]] = {"linear": lambda k: k, "sqrt": math.sqrt}


def scale_learning_rate(
    learning_rate: Any, old_batch: float, new_batch: float, rule: str = "linear"
) -> Any:
    """The learning rate that suits ``new_batch`` where ``learning_rate`` suited ``old_batch``.

    Args:
      learning_rate: a number, a scalar array, or a schedule; >= 0.
      old_batch: examples, or tokens, per update, > 0.
      new_batch: the same of the new run.
      rule: ``"linear"``, for SGD; ``"sqrt"``, for Adam and its kin.

    Returns:
      A number, array or schedule, as it came. A schedule keeps its steps, of which a larger batch
      makes fewer per epoch.
    """
    one_of("rule", rule, tuple(RULES))
    declare(learning_rate=length(learning_rate))
    factor = RULES[rule](_ratio(old_batch, new_batch))
    if callable(learning_rate):
        schedule = cast(Callable[[Any], Any], learning_rate)
        return lambda count: factor * schedule(count)
    return factor * learning_rate


def legw(
    learning_rate: Any, warmup_epochs: float, *, old_batch: float, new_batch: float
) -> tuple[Any, float]:
    """Linear-epoch gradual warm-up: a learning rate times sqrt(k), after k times the epochs.

    The warm-up is as many updates as before. You, Hseu, Ying, Demmel, Keutzer & Hsieh 2019,
    arXiv 1901.08584.

    Args:
      learning_rate: at the end of the warm-up, >= 0; a number, scalar array or schedule.
      warmup_epochs: length of the old run's warm-up, >= 0.
      old_batch: examples per update, > 0.
      new_batch: the same of the new run.

    Returns:
      The new learning rate, a number, array or schedule as it came, and the new warm-up epochs.
    """
    epochs = number("warmup_epochs", warmup_epochs, least=0)
    rate = scale_learning_rate(learning_rate, old_batch, new_batch, "sqrt")
    return rate, epochs * _ratio(old_batch, new_batch)


def _ratio(old_batch: float, new_batch: float) -> float:
    return number("new_batch", new_batch, above=0) / number("old_batch", old_batch, above=0)
