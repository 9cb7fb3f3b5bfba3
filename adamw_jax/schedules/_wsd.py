"""Warm up, stay, cool down (WSD): a schedule whose length need not be known at the start.

    warm-up    max / div  ->  max, linearly
    stable     max
    cool-down  max  ->  min over the last steps: "1-sqrt", "linear" or "cosine"

Until the cool-down the schedules of a short and a long run are the same, so one run gives the
weights from which both cool down. Hägele et al. 2024, arXiv 2405.18392; Hu et al. 2024, arXiv
2404.06395 (MiniCPM).

>>> plan = wsd(1e-3, total_steps=1000, warmup_steps=100)
>>> [f"{float(plan.learning_rate(t)):.2g}" for t in (0, 100, 800, 850, 1000)]
['1e-05', '0.001', '0.001', '0.0005', '0']
"""

from __future__ import annotations

from adamw_jax._core.checks import number, one_of, positive_steps, whole_number
from adamw_jax.schedules._phases import Phase, Phases, phases

SHAPES = ("1-sqrt", "linear", "cosine")


def wsd(
    max_learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int,
    pct_end: float = 0.2,
    shape: str = "1-sqrt",
    div: float = 100.0,
    min_learning_rate: float = 0.0,
) -> Phases:
    """Make a schedule of warm-up, constant learning rate and cool-down.

    To lengthen a run, give a larger ``total_steps`` before the cool-down has begun.

    Args:
      max_learning_rate: the constant rate, > 0; about half of the best peak of a cosine (paper).
      total_steps: number of updates in the run, over all epochs.
      warmup_steps: number of updates in the warm-up, >= 0; 1000 in the authors' code.
      pct_end: share of the steps in the cool-down, in [0, 1), rounded down; 0.2 (paper; authors'
        code: 0.1).
      shape: of the cool-down: ``"1-sqrt"`` (best in the paper), ``"linear"`` or ``"cosine"``.
      div: the warm-up starts at max/``div``, >= 1; 100 (authors' code).
      min_learning_rate: the value at the end, in [0, max_learning_rate).

    Returns:
      The schedule, to pass to an optimizer as its learning rate. It takes the count of updates,
      from 0, and keeps its last value after ``total_steps``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(aj.schedules.wsd(1e-3, 1000, warmup_steps=100))
    """
    top = number("max_learning_rate", max_learning_rate, above=0)
    total = positive_steps("total_steps", total_steps)
    warmup = whole_number("warmup_steps", warmup_steps, least=0)
    end = int(number("pct_end", pct_end, least=0, below=1) * total)
    one_of("shape", shape, SHAPES)
    start = top / number("div", div, least=1)
    low = number("min_learning_rate", min_learning_rate, least=0, below=top)
    if (stable := total - warmup - end) < 0:
        raise ValueError(
            f"warmup_steps={warmup} and the cool-down of {end} steps are longer than "
            f"total_steps={total}: shorten one of them."
        )
    plan = [
        (warmup, (start, top), "linear"),
        (stable, top, "constant"),
        (end, (top, low), shape),
    ]
    return phases(
        [Phase(steps, learning_rate=rate, shape=form) for steps, rate, form in plan if steps]
    )
