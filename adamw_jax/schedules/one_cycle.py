"""1cycle: learning rate up and down again, momentum the other way (Smith 2018, arXiv 1803.09820).

One object gives both schedules::

    learning rate   max / div  ->  max  ->  down to a final value
    momentum        high       ->  low  ->  high

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

from adamw_jax.schedules.phases import Phase, phases
from adamw_jax.schedules.ramps import Piecewise, Segment, positive_steps


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """Learning rate and momentum of a 1cycle, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      momentum: schedule of the momentum, b1 of the Adam family; None to leave that alone.
      total_steps: updates in the cycle.
      max_learning_rate: the peak.
    """

    learning_rate: Callable[[Any], Any]
    momentum: Callable[[Any], Any] | None
    total_steps: int
    max_learning_rate: float


def one_cycle(
    max_learning_rate: float,
    total_steps: int,
    preset: str = "fastai_v1",
    *,
    momentum: tuple[float, float] | None = (0.95, 0.85),
    **options: Any,
) -> OneCycle:
    """A 1cycle over learning rate and momentum.

    Args:
      max_learning_rate: the peak, > 0; ``lr_range_test`` helps to find it.
      total_steps: updates in the cycle, all epochs together.
      preset: whose form, with its options:

        * ``"fastai_v1"``: cosine up for ``pct_start`` = 0.3 of the steps (rounded down) from
          max/``div`` (25), cosine down to max/``final_div`` (25e4), which the last step does not
          quite reach. The learning rate is that of ``optax.cosine_onecycle_schedule``.
        * ``"fastai_v2"``: the same with the peak at the real-valued ``pct_start`` = 0.25, ``div`` =
          25, ``final_div`` = 1e5.
        * ``"pytorch"``: ``OneCycleLR``: ``pct_start`` = 0.3, ``div`` = 25, ``final_div`` = 1e4
          (below the *start*), ``shape`` = "cosine" or "linear", ``three_phase`` = False. The peak is
          one step earlier than fastai's and the last step uses exactly the least value.
        * ``"article"``: the three phases of fastai's AdamW article: linear up and down between
          max/``div`` (10) and max, then for ``pct_end`` = 0.075 of the steps down to
          max/(100 ``div``), linearly (``linear_end`` = True) or to 0 by a cosine.
        * ``"article_plateau"``: its four phases for language models: up in ``pct_start`` = 1/12 of
          the steps, as long on the peak as down (5/12), then 1/12 by a cosine to 0
          (``linear_end`` = False); ``div`` = 10.
        * ``"fastai_07"``: ``use_clr_beta``: the article's form on whole batches, ``div`` = 10,
          ``pct_end`` = 0.1. The momentum runs one batch ahead, as it does there.
        * ``"slanted_triangle"``: ``use_clr``: up for 1/``cut_div`` (10) of the batches from
          max/``div`` (32), down for the rest; the momentum likewise one ahead.
        * ``"optax_linear"``: ``optax.linear_onecycle_schedule``: linear up for ``pct_start`` = 0.3
          from max/``div`` (25), down until ``pct_final`` = 0.85, then to the start's
          1/``final_div`` (1e4).
      momentum: highest and lowest momentum (article: 0.95 and 0.85; 0.8 and 0.7 for language
        models); None cycles the learning rate only.
      **options: options of the preset.

    Raises:
      ValueError: a value is out of range, or the preset is unknown.
      TypeError: an option the preset does not have.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {preset!r}.")
    build, defaults = PRESETS[preset]
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise TypeError(f"preset {preset!r} has no option {unknown}; it has {sorted(defaults)}.")
    if not max_learning_rate > 0:
        raise ValueError(f"max_learning_rate must be a number > 0, got {max_learning_rate!r}.")
    total = positive_steps("total_steps", total_steps)
    chosen = {**defaults, **options}
    for name, value in chosen.items():
        if name.startswith("pct") and not 0 < value < 1:
            raise ValueError(f"{name} must be a fraction between 0 and 1, got {value!r}.")
        if "div" in name and not value >= 1:
            raise ValueError(f"{name} must be a number >= 1, got {value!r}.")
    if momentum is not None and not (
        len(momentum) == 2 and all(0 <= value < 1 for value in momentum)
    ):
        raise ValueError(f"momentum must be two numbers in [0, 1), got {momentum!r}.")
    rate, moving = build(float(max_learning_rate), total, momentum or (0.0, 0.0), **chosen)
    return OneCycle(rate, None if momentum is None else moving, total, float(max_learning_rate))


def _two(total: float, peak: float, rates: Any, momenta: Any, shape: str) -> Any:
    """Up and down again: schedules of learning rate and momentum with one peak."""
    (first, top, last), (high, low) = rates, momenta
    rest = total - peak
    rate = (
        Segment(0, peak, first, top, shape),
        Segment(peak, rest, top, last, shape),
    )
    moving = Segment(0, peak, high, low, shape), Segment(peak, rest, low, high, shape)
    return Piecewise(rate), Piecewise(moving)


def _fastai_v1(top, total, momenta, *, pct_start, div, final_div):
    peak = int(total * pct_start)
    if peak < 1:
        raise ValueError(f"total_steps={total} leaves no step for pct_start={pct_start}.")
    return _two(total, peak, (top / div, top, top / final_div), momenta, "cosine")


def _fastai_v2(top, total, momenta, *, pct_start, div, final_div):
    return _two(total, total * pct_start, (top / div, top, top / final_div), momenta, "cosine")


def _pytorch(top, total, momenta, *, pct_start, div, final_div, shape, three_phase):
    first, (high, low) = top / div, momenta
    last, peak = first / final_div, pct_start * total - 1
    if not 0 < peak < total - 1 or (three_phase and not 2 * peak < total - 1):
        raise ValueError(f"pct_start={pct_start} does not fit total_steps={total}.")
    if not three_phase:
        return _two(total - 1, peak, (first, top, last), momenta, shape)
    rest = total - 1 - 2 * peak
    rate = (
        Segment(0, peak, first, top, shape),
        Segment(peak, peak, top, first, shape),
        Segment(2 * peak, rest, first, last, shape),
    )
    moving = (
        Segment(0, peak, high, low, shape),
        Segment(peak, peak, low, high, shape),
        Segment(2 * peak, rest, high, high, "constant"),
    )
    return Piecewise(rate), Piecewise(moving)


def _article(top, total, momenta, *, div, pct_end, linear_end):
    ramp = total * (1 - pct_end) / 2
    return _tail(
        [
            Phase(steps=ramp, learning_rate=(top / div, top), momentum=momenta),
            Phase(steps=ramp, learning_rate=(top, top / div), momentum=momenta[::-1]),
        ],
        total * pct_end, top, div, momenta[0], linear_end,
    )  # fmt: skip


def _article_plateau(top, total, momenta, *, div, pct_start, pct_end, linear_end):
    middle = total * (1 - pct_start - pct_end) / 2
    if middle <= 0:
        raise ValueError(f"pct_start={pct_start} and pct_end={pct_end} leave no plateau.")
    return _tail(
        [
            Phase(steps=total * pct_start, learning_rate=(top / div, top), momentum=momenta),
            Phase(steps=middle, learning_rate=top, momentum=momenta[1]),
            Phase(steps=middle, learning_rate=(top, top / div), momentum=momenta[::-1]),
        ],
        total * pct_end, top, div, momenta[0], linear_end,
    )  # fmt: skip


def _tail(before, steps, top, div, high, linear_end):
    shape, last = ("linear", top / (100 * div)) if linear_end else ("cosine", 0.0)
    end = Phase(steps=steps, learning_rate=(top / div, last), momentum=high, shape=shape)
    made = phases([*before, end])
    return made.learning_rate, made.momentum


def _fastai_07(top, total, momenta, *, div, pct_end):
    high, low = momenta
    ramp = int(total * (1 - pct_end) / 2)
    if ramp < 1:
        raise ValueError(f"total_steps={total} leaves no step for the ramps.")
    rate = (
        Segment(0, ramp, top / div, top),
        Segment(ramp, ramp, top, top / div),
        Segment(2 * ramp, total - 2 * ramp, top / div, top / div * 0.01),
    )
    moving = Segment(0, ramp, high, low), Segment(ramp, ramp, low, high)
    return Piecewise(rate), Piecewise(moving, lead=1)


def _slanted_triangle(top, total, momenta, *, div, cut_div):
    peak = total // cut_div
    if not 0 < peak < total:
        raise ValueError(f"cut_div={cut_div} does not fit total_steps={total}.")
    rate, moving = _two(total, peak, (top / div, top, top / div), momenta, "linear")
    return rate, dataclasses.replace(moving, lead=1)


def _optax_linear(top, total, momenta, *, pct_start, pct_final, div, final_div):
    first, (high, low) = top / div, momenta
    peak, knee = int(pct_start * total), int(pct_final * total)
    if not 0 < peak < knee < total:
        raise ValueError(
            f"pct_start={pct_start} and pct_final={pct_final} do not fit total_steps={total}."
        )
    rate = (
        Segment(0, peak, first, top),
        Segment(peak, knee - peak, top, first),
        Segment(knee, total - knee, first, first / final_div),
    )
    return Piecewise(rate), Piecewise((Segment(0, peak, high, low), Segment(peak, knee - peak, low, high)))


PRESETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fastai_v1": (_fastai_v1, {"pct_start": 0.3, "div": 25.0, "final_div": 25e4}),
    "fastai_v2": (_fastai_v2, {"pct_start": 0.25, "div": 25.0, "final_div": 1e5}),
    "pytorch": (
        _pytorch,
        {"pct_start": 0.3, "div": 25.0, "final_div": 1e4, "shape": "cosine", "three_phase": False},
    ),
    "article": (_article, {"div": 10.0, "pct_end": 0.075, "linear_end": True}),
    "article_plateau": (
        _article_plateau,
        {"div": 10.0, "pct_start": 7.5 / 90, "pct_end": 7.5 / 90, "linear_end": False},
    ),
    "fastai_07": (_fastai_07, {"div": 10.0, "pct_end": 0.1}),
    "slanted_triangle": (_slanted_triangle, {"div": 32.0, "cut_div": 10}),
    "optax_linear": (
        _optax_linear,
        {"pct_start": 0.3, "pct_final": 0.85, "div": 25.0, "final_div": 1e4},
    ),
}
