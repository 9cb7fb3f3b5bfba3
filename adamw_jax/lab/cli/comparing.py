"""Define the commands on a task of the lab or of the user: compare and lr-find."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from adamw_jax.lab.cli.parsing import axes, count, names, rates

Seeds = Annotated[int, tyro.conf.arg(metavar="N")]
Comma = Annotated[str, tyro.conf.arg(metavar="A,B,...")]
OPTIMIZER = tyro.conf.arg(metavar="OPTIMIZER")
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
Whole = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers on a task, each tuned with the same number of trials.

    Attributes:
      words: Two or more optimizers (adamw and radam if none is given): names, or functions of your
        own as module:name or file.py:name. The first is compared with each of the others.
      optimizers: The same in one word, separated by commas.
      task: The name digits, digits_noisy, mnist1d or mnist_5k, or a Task of your own as
        module:name or file.py:name.
      steps: Train every run for this many steps; by default 960 on mnist1d, else 400.
      trials: Try this many settings for each optimizer.
      tuning_seeds: Run each trial with this many seeds.
      seeds: Run the chosen settings with this many fresh seeds, 2 or more.
      metric: Judge this metric; by default accuracy, or else loss.
      margin: Differences up to this one do not matter; by default 0.01 of a share, else 2 %.
      target: Count steps and seconds until the validation metric reaches this value.
      lr_grid: Try these learning rates in place of a range.
      space: Search these axes, such as b2=0.99 weight_decay=0.01..1 sgdw.learning_rate=0.1,0.3;
        "none" removes an axis.
      schedule: The learning rate follows this schedule.
      extend: Extend a space at whose edge the best trial lies, at most this often.
      out: Write the results to this folder; by default a new one under adamw-jax-results/.
      resume: Continue an interrupted comparison in that folder.
      overwrite: Replace earlier results in that folder, once the new ones are whole.
    """

    words: Annotated[tuple[str, ...], tyro.conf.Positional, OPTIMIZER] = ()
    optimizers: Comma | None = None
    task: str = "digits"
    steps: Whole = None
    trials: int = 8
    tuning_seeds: Seeds = 2
    seeds: Seeds = 32
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    margin: Number = None
    target: Number = None
    lr_grid: Annotated[str | None, tyro.conf.arg(metavar="A,B,...")] = None
    space: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AXIS=VALUES")] = ()
    schedule: Literal[
        "warmup_cosine", "one_cycle", "article", "article_plateau", "constant", "cosine"
    ] = "warmup_cosine"
    extend: int = 0
    out: Folder = None
    resume: bool = False
    overwrite: bool = False

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.folders import chosen_folder
        from adamw_jax.lab.loader import load, load_task
        from adamw_jax.lab.protocol import compare
        from adamw_jax.lab.runs import comparison_title, say_results, shown_progress
        from adamw_jax.lab.study import Budget

        task, chosen = load_task(self.task), self._chosen()
        steps = self.steps if self.steps is not None else (960 if self.task == "mnist1d" else 400)
        found = axes("--space", self.space, [name.rpartition(":")[2] for name in chosen])
        if self.lr_grid is not None:
            found.setdefault("", {})["learning_rate"] = rates("--lr-grid", self.lr_grid)
        makes = [load("optimizer", name) if ":" in name else name for name in chosen]
        given = _named(chosen, makes, found)
        out = chosen_folder(self.out, "compare", self.resume)
        with shown_progress(console) as progress:
            made = compare(
                task, given, budget=Budget(steps, self.trials, self.tuning_seeds),
                seeds=self.seeds, metric=self.metric, margin=self.margin, target=self.target,
                space=found.get(""), schedule=self.schedule, extend=self.extend, out=out,
                resume=self.resume, overwrite=self.overwrite, progress=progress,
            )  # fmt: skip
        title = comparison_title(made.settings)
        say_results(title, [made.result()], out, made.seconds, console, tables=True)
        return 0

    def _chosen(self) -> tuple[str, ...]:
        if self.optimizers is None:
            return self.words or ("adamw", "radam")
        if self.words:
            raise ValueError(
                f"the optimizers are given twice, as {' '.join(self.words)} and as --optimizers "
                f"{self.optimizers}: give them once."
            )
        return names("--optimizers", self.optimizers)


def _named(names: Sequence[str], makes: Sequence[Any], own: dict[str, dict[str, Any]]) -> Any:
    """Return optimizers by name, with the axes that are given for them."""
    from adamw_jax.lab.contenders import Optimizer

    given = {}
    for text, make in zip(names, makes, strict=True):
        name = text.rpartition(":")[2]
        optimizer = make if isinstance(make, Optimizer) else Optimizer(make)
        space = {**optimizer.space, **own.get(name, {})}
        if name in given:
            raise ValueError(f"the optimizers must be different, got {name!r} twice.")
        given[name] = dataclasses.replace(optimizer, space=space)
    return given


@dataclasses.dataclass(frozen=True)
class LrFind:
    """Find a learning rate by the range test.

    Attributes:
      word: The optimizer (adamw if none is given): a name, or a function of your own as module:name
        or file.py:name.
      optimizer: The same as an option.
      task: The name digits, digits_noisy, mnist1d or mnist_5k, or a Task of your own as
        module:name or file.py:name.
      seeds: Run the test with this many seeds.
      steps: A run ends after this many steps, or earlier if the loss diverges.
      start: The first learning rate.
      end: The last learning rate.
      weight_decay: The decoupled decay; by default that of the optimizer.
      out: Write the results to this folder; by default a new one under adamw-jax-results/.
      resume: Keep results that are finished in that folder.
      overwrite: Replace earlier results in that folder, once the new ones are whole.
    """

    word: Annotated[str | None, tyro.conf.Positional, OPTIMIZER] = None
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    task: str = "digits"
    seeds: Seeds = 3
    steps: int = 200
    start: float = 1e-6
    end: float = 10.0
    weight_decay: Number = None
    out: Folder = None
    resume: bool = False
    overwrite: bool = False

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.contenders import contender
        from adamw_jax.lab.experiments import lr_find
        from adamw_jax.lab.folders import chosen_folder
        from adamw_jax.lab.loader import load, load_task
        from adamw_jax.lab.runs import perform, say

        if self.word and self.optimizer:
            raise ValueError(
                f"the optimizer is given twice, as {self.word} and as --optimizer "
                f"{self.optimizer}: give it once."
            )
        task, text = load_task(self.task), self.word or self.optimizer or "adamw"
        make = load("optimizer", text) if ":" in text else text
        contender(make)  # it checks the name
        settings = lr_find.Settings(
            task=task.name, optimizer=text, seeds=count("--seeds", self.seeds), steps=self.steps,
            start=self.start, end=self.end, weight_decay=self.weight_decay,
        )  # fmt: skip

        def measure(s: Any, runner: Any) -> Any:
            return lr_find.measured(task, make, s, runner.progress)

        experiment = dataclasses.replace(lr_find.EXPERIMENT, measure=measure)
        report = perform(
            f"A learning rate for {text} on {task.name}", [(experiment, "own", settings)],
            chosen_folder(self.out, "lr-find", self.resume), console,
            overwrite=self.overwrite, resume=self.resume,
        )  # fmt: skip
        say(report, console, tables=True)
        return 0
