"""Scale the learning rate for another batch size.

    linear   lr' = lr k,          k = new batch / old batch
    sqrt     lr' = lr sqrt(k)

Use the linear rule for SGD while gradient noise limits the step (Goyal et al. 2017, arXiv
1706.02677), the square root for adaptive methods (Krizhevsky 2014, arXiv 1404.5997; Granziol,
Zohren & Roberts, JMLR 2022, arXiv 2006.09092). Neither helps when curvature limits the step;
``diagnostics.batch_hessian_extreme`` and ``diagnostics.gradient_noise_scale`` show from which batch
size.

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
    """Scale a learning rate from ``old_batch`` to ``new_batch``.

    Args:
      learning_rate: a number, a scalar array, or a schedule; >= 0.
      old_batch: examples or tokens per update, > 0.
      new_batch: the same in the new run.
      rule: ``"linear"``, for SGD; ``"sqrt"``, for Adam and related methods.

    Returns:
      The new learning rate, of the same kind. A schedule still counts updates; an epoch of larger
      batches has fewer of them.

    Example:
      >>> import adamw_jax as aj
      >>> aj.schedules.scale_learning_rate(0.1, 256, 1024, "linear")
      0.4
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
    """Scale a learning rate by sqrt(k) and its warm-up by k (linear-epoch gradual warm-up).

    k is new_batch / old_batch, so the number of updates in the warm-up does not change. You, Hseu,
    Ying, Demmel, Keutzer & Hsieh 2019, arXiv 1901.08584.

    Args:
      learning_rate: learning rate after the warm-up, >= 0; a number, scalar array or schedule.
      warmup_epochs: epochs of warm-up in the old run, >= 0.
      old_batch: examples per update, > 0.
      new_batch: the same in the new run.

    Returns:
      The new learning rate, of the same kind, and the new number of warm-up epochs.

    Example:
      >>> import adamw_jax as aj
      >>> aj.schedules.legw(0.1, 2.0, old_batch=256, new_batch=1024)
      (0.2, 8.0)
    """
    epochs = number("warmup_epochs", warmup_epochs, least=0)
    rate = scale_learning_rate(learning_rate, old_batch, new_batch, "sqrt")
    return rate, epochs * _ratio(old_batch, new_batch)


def _ratio(old_batch: float, new_batch: float) -> float:
    return number("new_batch", new_batch, above=0) / number("old_batch", old_batch, above=0)
