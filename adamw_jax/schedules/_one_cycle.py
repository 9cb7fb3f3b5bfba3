"""Make 1cycle schedules of learning rate and momentum (Smith 2018, arXiv 1803.09820).

The learning rate rises and falls, the momentum falls and rises; one object has both schedules::

    learning rate   max / div  ->  max  ->  down to a final value
    momentum        start      ->  low  ->  end

>>> cycle = one_cycle(1e-2, total_steps=100)
>>> [round(float(cycle.learning_rate(t)), 5) for t in (0, 30, 99)]
[0.0004, 0.01, 1e-05]
>>> [round(float(cycle.momentum(t)), 2) for t in (0, 30, 99)]
[0.95, 0.85, 0.95]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from adamw_jax._core.checks import number, one_of, positive_steps
from adamw_jax.schedules._presets import PRESETS, Momenta
from adamw_jax.schedules._view import Viewed


@dataclasses.dataclass(frozen=True)
class OneCycle(Viewed):
    """The schedules of a 1cycle, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      momentum: schedule of the momentum (b1 in the Adam family), or None.
      total_steps: updates in the cycle.
      max_learning_rate: the peak.
      bias_correction: that of the Adam that the form was made for, which an optimizer takes if you
        give it none; None for its own.

    Example:
      >>> import adamw_jax as aj
      >>> cycle = aj.one_cycle(1e-2, total_steps=100)
      >>> cycle.total_steps, cycle.max_learning_rate
      (100, 0.01)
      >>> tx = aj.adamw(cycle)
    """

    learning_rate: Callable[[Any], Any]
    momentum: Callable[[Any], Any] | None
    total_steps: int
    max_learning_rate: float
    bias_correction: str | None = None


def one_cycle(
    max_learning_rate: float,
    total_steps: int,
    preset: str = "fastai_v1",
    *,
    momentum: tuple[float, float] | tuple[float, float, float] | None = (0.95, 0.85, 0.95),
    **options: Any,
) -> OneCycle:
    """Make a 1cycle of learning rate and momentum.

    The schedules take the count of updates, from 0, and keep their last value after
    ``total_steps``. The arguments must be numbers, not tracers.

    Args:
      max_learning_rate: the peak, > 0; ``lr_range_test`` helps to find it. For fastai's
        ``slice(low, peak)`` give ``peak``, and the optimizer ``rules=discriminative_rates(...)``.
      total_steps: number of updates in the cycle, over all epochs.
      preset: form of the cycle, with its options:

        * ``"fastai_v1"``: cosine up for ``pct_start`` = 0.3 of the steps (rounded down) from
          max/``div`` (25), cosine down to max/``final_div`` (25e4), which would be reached one step
          after the last. The learning rate is that of ``optax.cosine_onecycle_schedule``.
        * ``"fastai_v2"``: the same with ``pct_start`` = 0.25, not rounded, ``div`` = 25,
          ``final_div`` = 1e5.
        * ``"pytorch"``: ``OneCycleLR``: ``pct_start`` = 0.3, ``div`` = 25, ``final_div`` = 1e4
          (divides the *start*), ``shape`` = "cosine" or "linear", ``three_phase`` = False. The peak
          is one step earlier than fastai's, and the last step uses exactly the lowest value. With
          a momentum it brings PyTorch's ``bias_correction="current"``; to change that, give
          ``bias_correction="exact"`` to the optimizer.
        * ``"article"``: the three phases of fastai's AdamW article: linear up and down between
          max/``div`` (10) and max, then for ``pct_end`` = 0.075 of the steps down to
          max/(100 ``div``), linearly (``linear_end`` = True) or to 0 by a cosine.
        * ``"article_plateau"``: its four phases for language models: up in ``pct_start`` = 1/12 of
          the steps, 5/12 at the peak, 5/12 down, then ``pct_end`` = 1/12 by a cosine to 0
          (``linear_end`` = False); ``div`` = 10.
        * ``"fastai_07"``: ``use_clr_beta``: the article's form in whole batches, ``div`` = 10,
          ``pct_end`` = 0.1. As there, the momentum is one batch ahead.
        * ``"slanted_triangle"``: ``use_clr``: up for 1/``cut_div`` (10) of the batches from
          max/``div`` (32), down for the rest; the momentum is also one batch ahead.
        * ``"optax_linear"``: ``optax.linear_onecycle_schedule``: linear up for ``pct_start`` = 0.3
          from max/``div`` (25), down until ``pct_final`` = 0.85, then to the start's
          1/``final_div`` (1e4).
      momentum: its values at the start, at the peak of the learning rate (the lowest) and at the
        end, in [0, 1), as fastai v2's ``moms``; if two are given, the end equals the start.
        Default 0.95, 0.85, 0.95 (article and fastai; the article has 0.8, 0.7 for language models).
        None cycles only the learning rate.
      **options: options of the preset.

    Returns:
      The schedules, to pass to an optimizer as its learning rate.

    Example:
      >>> import adamw_jax as aj
      >>> cycle = aj.one_cycle(3e-3, total_steps=1000)
      >>> tx = aj.adamw(cycle, weight_decay=0.1)
      >>> round(float(cycle.learning_rate(300)), 6)
      0.003
    """
    one_of("preset", preset, tuple(PRESETS))
    chosen = PRESETS[preset].options(preset, options)
    if isinstance(max_learning_rate, (tuple, list, slice)):
        raise ValueError(_by_group(max_learning_rate, total_steps))
    top = number("max_learning_rate", max_learning_rate, above=0)
    total = positive_steps("total_steps", total_steps)
    momenta = (0.0, 0.0, 0.0) if momentum is None else _momenta(momentum)
    rate, moving = PRESETS[preset].build(top, total, momenta, **chosen)
    if momentum is None:
        return OneCycle(rate, None, total, top)
    return OneCycle(rate, moving, total, top, PRESETS[preset].bias_correction)


def _by_group(rates: Any, total_steps: Any) -> str:
    """Make the error text for several peaks: fastai's slice, or PyTorch's list."""
    asked = f"max_learning_rate must be a number > 0, got {rates!r}. "
    if isinstance(rates, slice):
        return asked + (
            "For fastai's rates by group write rules = adamw_jax.direction.discriminative_rates("
            f"{rates.start}, {rates.stop}, ['body/*', 'head/*']) with your groups from input to "
            f"output, and adamw(one_cycle({rates.stop}, {total_steps}), rules=rules)."
        )
    return asked + (
        "For a peak by group give the optimizer rules=parameter_rules({'head/*': Rule("
        f"learning_rate=one_cycle({rates[-1] if rates else 0.1}, {total_steps}).learning_rate)}}, "
        "default=Rule())."
    )


def _momenta(momentum: Any) -> Momenta:
    if not isinstance(momentum, (tuple, list)) or len(momentum) not in (2, 3):
        raise ValueError(
            "momentum must be (start, lowest, end), for instance (0.95, 0.85, 0.95), or (start, "
            f"lowest), got {momentum!r}."
        )
    start, low, *rest = (number("momentum", value, least=0, below=1) for value in momentum)
    end = rest[0] if rest else start
    if low > min(start, end):
        raise ValueError(
            f"momentum must be (start, lowest, end), got {momentum!r}: give the lowest value "
            "second."
        )
    return start, low, end
