"""The commands as frozen dataclasses: their fields are the options, their docstrings the help."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console

from adamw_jax.lab.cli.parsing import count, names, rates

Seeds = Annotated[int, tyro.conf.arg(metavar="N")]
Comma = Annotated[str, tyro.conf.arg(metavar="A,B,...")]


@dataclasses.dataclass(frozen=True)
class Demo:
    """Check the claims of the Adam literature on MNIST-1D and digits: table, pictures, report.

    Attributes:
      quick: fewer epochs, for a first look of about half a minute.
      out: folder for the results; a new one under adamw-jax-results/ if not given.
      overwrite: replace earlier results in that folder.
    """

    quick: bool = False
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.experiments import DEMO

        return Run(DEMO, "quick" if self.quick else "demo", self.out, self.overwrite).perform(
            console, command, "The claims of the Adam literature, tried out", "demo"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """Run experiments by name; `adamw-jax list` shows the names.

    Attributes:
      names: experiments.
      preset: how long to train.
      out: folder for the results; a new one under adamw-jax-results/ if not given.
      overwrite: replace earlier results in that folder.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    preset: Literal["demo", "quick", "tiny"] = "demo"
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        return self.perform(console, command, f"Experiments: {', '.join(self.names)}", "run")

    def perform(self, console: Console, command: str, title: str, kind: str) -> int:
        """Runs the experiments and prints the verdicts."""
        from adamw_jax.lab.experiments import get_experiment
        from adamw_jax.lab.runs import new_folder, perform, say

        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError("names must be one experiment or several different ones.")
        chosen = [get_experiment(name) for name in self.names]
        work = [
            (experiment, self.preset, experiment.settings(self.preset)) for experiment in chosen
        ]
        folder = new_folder(self.out, kind, self.overwrite)
        say(perform(title, command, work, folder, console), console, tables=kind != "demo")
        return 0


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers on a task, each with the same grid of learning rates.

    Attributes:
      task: digits, digits_noisy or mnist1d.
      optimizers: two names or more; the others are compared with the first.
      seeds: how many, 2 or more.
      steps: of every run; None for 400 on digits and 960 on mnist1d.
      lr_grid: learning rates, the same for every optimizer.
      weight_decay: decoupled decay of those that decay by default, as adamw does.
      b2: of those whose own is Adam's 0.999; short runs want a short memory.
      schedule: of the learning rate.
      out: folder for the results; a new one under adamw-jax-results/ if not given.
      overwrite: replace earlier results in that folder.
    """

    task: str = "digits"
    optimizers: Comma = "adamw,radam"
    seeds: Seeds = 4
    steps: int | None = None
    lr_grid: Comma = "0.001,0.003,0.01,0.03,0.1"
    weight_decay: float = 0.1
    b2: float = 0.99
    schedule: Literal["one_cycle", "constant", "cosine"] = "one_cycle"
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.experiments import compare

        steps = self.steps if self.steps is not None else (960 if self.task == "mnist1d" else 400)
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}.")
        settings = compare.Settings(
            task=self.task,
            optimizers=names("--optimizers", self.optimizers),
            seeds=count("--seeds", self.seeds, least=2),
            steps=steps,
            points=compare.evaluations(steps),
            learning_rates=rates("--lr-grid", self.lr_grid),
            weight_decay=self.weight_decay,
            b2=self.b2,
            schedule=self.schedule,
        )
        title = f"{', '.join(settings.optimizers)} on {self.task}"
        return _one(compare.EXPERIMENT, settings, title, self, console, command)


@dataclasses.dataclass(frozen=True)
class LrFind:
    """Find a learning rate by the range test.

    Attributes:
      task: digits, digits_noisy or mnist1d.
      optimizer: its name.
      seeds: how many runs.
      steps: of a run.
      start: first learning rate.
      end: last learning rate.
      weight_decay: decoupled decay.
      out: folder for the results; a new one under adamw-jax-results/ if not given.
      overwrite: replace earlier results in that folder.
    """

    task: str = "digits"
    optimizer: str = "adamw"
    seeds: Seeds = 3
    steps: int = 200
    start: float = 1e-6
    end: float = 10.0
    weight_decay: float = 0.0
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.experiments import lr_find

        settings = lr_find.Settings(
            task=self.task,
            optimizer=self.optimizer,
            seeds=count("--seeds", self.seeds),
            steps=self.steps,
            start=self.start,
            end=self.end,
            weight_decay=self.weight_decay,
        )
        title = f"A learning rate for {self.optimizer} on {self.task}"
        return _one(lr_find.EXPERIMENT, settings, title, self, console, command)


@dataclasses.dataclass(frozen=True)
class List:
    """List optimizers, and the tasks and experiments of the lab.

    Attributes:
      pattern: shell-style, such as "adam*".
    """

    pattern: Annotated[str, tyro.conf.Positional] = "*"

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.cli.catalogue import show_list

        return show_list(self.pattern, console)


@dataclasses.dataclass(frozen=True)
class Info:
    """Show what the library knows of an optimizer.

    Attributes:
      name: of the optimizer.
    """

    name: Annotated[str, tyro.conf.Positional]

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.cli.catalogue import show_info

        return show_info(self.name, console)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Show versions, devices and what is installed; fail where the library does not work."""

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.cli.doctor import show_doctor

        return show_doctor(console)


@dataclasses.dataclass(frozen=True)
class Report:
    """Build the report again from the logs in a folder of results.

    Attributes:
      folder: the folder.
    """

    folder: Annotated[Path, tyro.conf.Positional]

    def __call__(self, console: Console, command: str) -> int:
        """Runs it."""
        from adamw_jax.lab.report import build
        from adamw_jax.lab.runs import say

        say(build(self.folder), console)
        return 0


def _one(
    experiment: Any, settings: Any, title: str, options: Any, console: Console, command: str
) -> int:
    """Runs one experiment with the user's own settings and prints its table."""
    from adamw_jax.lab.runs import new_folder, perform, say

    folder = new_folder(options.out, experiment.name.replace("_", "-"), options.overwrite)
    work = [(experiment, "own", settings)]
    say(perform(title, command, work, folder, console), console, tables=True)
    return 0


COMMANDS = {
    "demo": Demo,
    "run": Run,
    "compare": Compare,
    "lr-find": LrFind,
    "list": List,
    "info": Info,
    "doctor": Doctor,
    "report": Report,
}


def run(arguments: Sequence[str]) -> int:
    """Parses and runs a command; returns its exit status."""
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name=name)] for name, kind in COMMANDS.items()
    )
    chosen: Any = tyro.cli(
        Union[kinds],  # type: ignore[valid-type]  # noqa: UP007
        prog="adamw-jax",
        args=list(arguments),
        description="Optimizers of the Adam family for JAX: try them, compare them, look them up.",
    )
    command = shlex.join(["adamw-jax", *arguments])
    console = Console() if sys.stdout.isatty() else Console(width=110)
    return chosen(console, command)
