"""Compare optimizers on a task: tune each with the same budget, confirm with fresh seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamw_jax.lab.choices import choose
from adamw_jax.lab.comparison import Comparison
from adamw_jax.lab.contenders import Contender, Make, Optimizer, contenders, in_words
from adamw_jax.lab.engine import metric_names
from adamw_jax.lab.recipes import tables
from adamw_jax.lab.settings import LOWER, Settings, is_share
from adamw_jax.lab.study import Budget, OnRows, Study
from adamw_jax.lab.task import Task


def compare(
    task: Task,
    optimizers: Sequence[Make | Optimizer] | Mapping[str, Make | Optimizer],
    *,
    budget: Budget | int,
    seeds: int = 32,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    margin: float | None = None,
    target: float | None = None,
    space: Mapping[str, Any] | None = None,
    schedule: str = "warmup_cosine",
    extend: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: OnRows | None = None,
    progress: Any = None,
) -> Comparison:
    """Compare optimizers on a task.

    1. Every optimizer gets the same number of *trials* from its search space, each with a few
       seeds. The best trial by the metric on validation data is chosen. A setting with diverged
       runs comes after those with fewer.
    2. Each chosen setting runs with *fresh* seeds, which choosing has not seen, and is judged on
       test data, by paired differences to the first optimizer, the baseline.

    The verdict on "better than the baseline" is one of five words: *shown* or *contradicted* (a
    paired t-test finds a difference), *equivalent* (two one-sided tests find it smaller than the
    margin), *undecided*, or *does not apply* (runs diverged). p-values are corrected for the number
    of optimizers by Holm's method.

    Args:
      task: what to train.
      optimizers: two or more; the first is the baseline. Each is a name such as ``"adamw"`` or
        ``"lookahead_radam"``, a function of hyperparameters such as ``optax.adamw`` or your own, an
        optax transformation as it is, or an ``Optimizer`` with a space of its own. A dict gives
        names.
      budget: a ``Budget``, or the number of steps.
      seeds: fresh seeds of the chosen settings, at least 2. 32 suit small tasks; the result says
        which differences they can see.
      metric: what is judged: a key of ``task.evaluate``. By default accuracy, if there is one, else
        loss, else the only one.
      higher_is_better: direction of the metric; by default by its name.
      margin: largest difference that does not matter, in the unit of the metric; by default 0.01
        for a share such as accuracy, else 2 % of the baseline's mean.
      target: value of the metric on validation data; steps and seconds to it are reported. By
        default what the baseline reached while its setting was chosen, less the margin.
      space: axes of the search for every optimizer that takes them, over the default space:
        ``learning_rate`` from 1e-4 to 0.1 (from 0.001 to 10 for SGD and others of this library
        whose steps grow with the gradient), and ``weight_decay`` from 0.001 to 1 for all that take
        it. ``{"weight_decay": None}`` leaves every optimizer its own decay.
      schedule: shape of the learning rate: ``"warmup_cosine"`` (linear over a tenth of the steps),
        ``"cosine"``, ``"constant"``; or ``"one_cycle"``, ``"article"`` or ``"article_plateau"``
        (fastai's cosine and the forms of its AdamW article), in which optimizers of this library
        also cycle the momentum.
      extend: how often a space is extended where the best trial is at its edge. The additional
        trials, half as many, are counted in the result.
      out: folder for live logs and the report; None for neither.
      resume: continue an interrupted comparison in ``out``, also inside its runs.
      overwrite: replace earlier results in ``out``, when the new ones are whole.
      on_rows: called with the new rows after every group of runs, for a logger of your own.
      progress: a ``Progress``; by default nothing is shown.

    Raises:
      ValueError: an argument does not fit.

    >>> import jax, numpy as np
    >>> from adamw_jax.lab import Task, split
    >>> x = np.linspace(-1, 1, 60, dtype=np.float32)
    >>> line = Task(
    ...     init=lambda key: {"slope": jax.random.normal(key)},
    ...     loss=lambda params, batch: (params["slope"] * batch[0] - batch[1]) ** 2,
    ...     data=split((x, 3 * x)),
    ... )
    >>> found = compare(line, ["adamw", "sgdw"], budget=Budget(20, trials=2), seeds=3)
    >>> [row["optimizer"] for row in found.ranking()]
    ['sgdw', 'adamw']
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    tables(schedule, 1.0, budget.steps)  # it checks the name and the steps
    made = contenders(optimizers, space, schedule == "constant")
    _check(seeds, margin, extend)
    metric, higher_is_better = _metric(task, metric, higher_is_better)
    settings = Settings(
        **_described(task, made, budget),
        seeds=seeds,
        extend=extend,
        schedule=schedule,
        metric=metric,
        higher_is_better=higher_is_better,
        margin=margin,
        target=target,
    )
    study = Study(task, made, budget, settings, on_rows, progress)
    if out is None:
        return study.run([])
    from adamw_jax.lab.runs import run_study

    return run_study(study, Path(out), resume=resume, overwrite=overwrite)


def _described(task: Task, made: Sequence[Contender], budget: Budget) -> dict[str, Any]:
    """Return the settings that describe task, optimizers and budget."""
    return {
        "task": task.name,
        "about": task.about,
        "optimizers": tuple(contender.name for contender in made),
        "spaces": tuple(in_words(contender.space) for contender in made),
        "batch_size": task.data.batch_size if task.data.size is not None else None,
        "split": "validation" if task.data.test is None else "test",
        **dataclasses.asdict(budget),
    }


def _check(seeds: int, margin: float | None, extend: int) -> None:
    if seeds < 2 or seeds > 10_000:
        raise ValueError(f"seeds must be between 2 and 10000, got {seeds}.")
    if margin is not None and not margin >= 0:
        raise ValueError(f"margin must be a number >= 0, got {margin}.")
    if extend < 0:
        raise ValueError(f"extend must be 0 or more, got {extend}.")


def _metric(task: Task, metric: str | None, higher: bool | None) -> tuple[str, bool]:
    """Return the metric and its direction."""
    names = metric_names(task)
    if metric is None:
        usual = [name for name in ("accuracy", "loss", *names) if name in names]
        if not {"accuracy", "loss"} & set(names) and len(names) > 1:
            raise ValueError(f"metric must be one of {', '.join(names)}: name the one to judge.")
        metric = usual[0]
    choose("metric", metric, dict.fromkeys(names))
    if higher is None:
        lower = any(word in LOWER for word in metric.lower().split("_"))
        if not lower and not is_share(metric):
            raise ValueError(
                f"higher_is_better must be True or False for the metric {metric!r}, whose name "
                "does not tell."
            )
        higher = not lower
    return metric, higher
