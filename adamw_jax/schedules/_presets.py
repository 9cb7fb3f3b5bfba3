"""Build the forms of 1cycle that are in use from ramps of learning rate and momentum.

A form is a function of the peak, the number of steps, the momenta at the start, at the peak and at
the end, and its options. It returns the two schedules.

>>> sorted(PRESETS["article"].defaults)
['div', 'linear_end', 'pct_end']
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from adamw_jax._core.checks import number, one_of, positive_steps, switch
from adamw_jax.schedules._phases import Phase, phases
from adamw_jax.schedules._ramps import Piecewise, Segment

Momenta = tuple[float, float, float]
Both = tuple[Piecewise, Piecewise]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A form, with the function that builds it and the defaults of its options.

    ``bias_correction`` is that of the Adam it was made for, if it differs from the exact one.
    """

    build: Callable[..., Both]
    defaults: dict[str, Any]
    bias_correction: str | None = None

    def options(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Check the given options, and add the defaults of the others."""
        unknown = sorted(set(given) - set(self.defaults))
        if unknown:
            raise TypeError(
                f"preset {name!r} has no option {', '.join(unknown)}; it has "
                f"{', '.join(sorted(self.defaults))}."
            )
        chosen = {**self.defaults, **given}
        for option, value in chosen.items():
            if option.startswith("pct"):
                chosen[option] = number(option, value, above=0, below=1)
            elif option == "cut_div":
                chosen[option] = positive_steps(option, value)
            elif option in ("div", "final_div"):
                chosen[option] = number(option, value, least=1)
            elif option == "shape":
                one_of(option, value, ("cosine", "linear"))
            else:
                switch(option, value)
        return chosen


def _fits(fits: bool, total: int, **options: Any) -> None:
    if not fits:
        shown = " and ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(
            f"total_steps={total!r} leaves no step for a ramp with {shown}: give more steps or "
            "another share."
        )


def _up_and_down(total: float, peak: float, rates: Any, momenta: Momenta, shape: str) -> Both:
    (first, top, last), (start, low, end) = rates, momenta
    rest = total - peak
    rate = Segment(0, peak, first, top, shape), Segment(peak, rest, top, last, shape)
    moving = Segment(0, peak, start, low, shape), Segment(peak, rest, low, end, shape)
    return Piecewise(rate), Piecewise(moving)


def _fastai_v1(top, total, momenta, *, pct_start, div, final_div) -> Both:
    peak = int(total * pct_start)
    _fits(peak >= 1, total, pct_start=pct_start)
    return _up_and_down(total, peak, (top / div, top, top / final_div), momenta, "cosine")


def _fastai_v2(top, total, momenta, *, pct_start, div, final_div) -> Both:
    rates = top / div, top, top / final_div
    return _up_and_down(total, total * pct_start, rates, momenta, "cosine")


def _pytorch(top, total, momenta, *, pct_start, div, final_div, shape, three_phase) -> Both:
    first, (start, low, end) = top / div, momenta
    last, peak = first / final_div, pct_start * total - 1
    _fits(0 < peak * (2 if three_phase else 1) < total - 1, total, pct_start=pct_start)
    if not three_phase:
        return _up_and_down(total - 1, peak, (first, top, last), momenta, shape)
    rest = total - 1 - 2 * peak
    rate = (
        Segment(0, peak, first, top, shape),
        Segment(peak, peak, top, first, shape),
        Segment(2 * peak, rest, first, last, shape),
    )
    moving = (
        Segment(0, peak, start, low, shape),
        Segment(peak, peak, low, end, shape),
        Segment(2 * peak, rest, end, end, "constant"),
    )
    return Piecewise(rate), Piecewise(moving)


def _article(top, total, momenta, *, div, pct_end, linear_end) -> Both:
    ramp = total * (1 - pct_end) / 2
    before = [
        Phase(steps=ramp, learning_rate=(top / div, top), momentum=momenta[:2]),
        Phase(steps=ramp, learning_rate=(top, top / div), momentum=momenta[1:]),
    ]
    return _with_tail(before, total * pct_end, top, div, momenta[2], linear_end)


def _article_plateau(top, total, momenta, *, div, pct_start, pct_end, linear_end) -> Both:
    middle = total * (1 - pct_start - pct_end) / 2
    _fits(middle > 0, total, pct_start=pct_start, pct_end=pct_end)
    before = [
        Phase(steps=total * pct_start, learning_rate=(top / div, top), momentum=momenta[:2]),
        Phase(steps=middle, learning_rate=top, momentum=momenta[1]),
        Phase(steps=middle, learning_rate=(top, top / div), momentum=momenta[1:]),
    ]
    return _with_tail(before, total * pct_end, top, div, momenta[2], linear_end)


def _with_tail(before, steps, top, div, momentum, linear_end) -> Both:
    shape, last = ("linear", top / (100 * div)) if linear_end else ("cosine", 0.0)
    end = Phase(steps=steps, learning_rate=(top / div, last), momentum=momentum, shape=shape)
    made = phases([*before, end])
    assert made.momentum is not None
    return made.learning_rate, made.momentum


def _fastai_07(top, total, momenta, *, div, pct_end) -> Both:
    start, low, end = momenta
    ramp = int(total * (1 - pct_end) / 2)
    _fits(ramp >= 1, total, pct_end=pct_end)
    rate = (
        Segment(0, ramp, top / div, top),
        Segment(ramp, ramp, top, top / div),
        Segment(2 * ramp, total - 2 * ramp, top / div, top / div * 0.01),
    )
    moving = Segment(0, ramp, start, low), Segment(ramp, ramp, low, end)
    return Piecewise(rate), Piecewise(moving).ahead(1)


def _slanted_triangle(top, total, momenta, *, div, cut_div) -> Both:
    peak = total // cut_div
    _fits(0 < peak < total, total, cut_div=cut_div)
    rate, moving = _up_and_down(total, peak, (top / div, top, top / div), momenta, "linear")
    return rate, moving.ahead(1)


def _optax_linear(top, total, momenta, *, pct_start, pct_final, div, final_div) -> Both:
    first, (start, low, end) = top / div, momenta
    peak, knee = int(pct_start * total), int(pct_final * total)
    _fits(0 < peak < knee < total, total, pct_start=pct_start, pct_final=pct_final)
    rate = (
        Segment(0, peak, first, top),
        Segment(peak, knee - peak, top, first),
        Segment(knee, total - knee, first, first / final_div),
    )
    moving = Segment(0, peak, start, low), Segment(peak, knee - peak, low, end)
    return Piecewise(rate), Piecewise(moving)


_LANGUAGE_MODEL_EPOCHS = (7.5, 37.5, 37.5, 7.5)
_SHARE = _LANGUAGE_MODEL_EPOCHS[0] / sum(_LANGUAGE_MODEL_EPOCHS)

PRESETS: dict[str, Preset] = {
    "fastai_v1": Preset(_fastai_v1, {"pct_start": 0.3, "div": 25.0, "final_div": 25e4}),
    "fastai_v2": Preset(_fastai_v2, {"pct_start": 0.25, "div": 25.0, "final_div": 1e5}),
    "pytorch": Preset(
        _pytorch,
        {"pct_start": 0.3, "div": 25.0, "final_div": 1e4, "shape": "cosine", "three_phase": False},
        "current",
    ),
    "article": Preset(_article, {"div": 10.0, "pct_end": 0.075, "linear_end": True}),
    "article_plateau": Preset(
        _article_plateau,
        {"div": 10.0, "pct_start": _SHARE, "pct_end": _SHARE, "linear_end": False},
    ),
    "fastai_07": Preset(_fastai_07, {"div": 10.0, "pct_end": 0.1}),
    "slanted_triangle": Preset(_slanted_triangle, {"div": 32.0, "cut_div": 10}),
    "optax_linear": Preset(
        _optax_linear, {"pct_start": 0.3, "pct_final": 0.85, "div": 25.0, "final_div": 1e4}
    ),
}
