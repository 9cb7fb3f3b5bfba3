"""Define the commands as dataclasses: fields are options, docstrings are help texts."""

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
    """Test claims of the Adam literature on MNIST-1D and digits; write tables, pictures, a report.

    Attributes:
      quick: train fewer epochs; takes about half a minute.
      out: folder for the results; by default a new one under adamw-jax-results/.
      overwrite: replace earlier results in that folder.
    """

    quick: bool = False
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.experiments import DEMO

        return Run(DEMO, "quick" if self.quick else "demo", self.out, self.overwrite).perform(
            console, command, "Claims of the Adam literature, tested", "demo"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """Run experiments by name; `adamw-jax list` shows the names.

    Attributes:
      names: names of the experiments.
      preset: how long to train; demo is the longest.
      out: folder for the results; by default a new one under adamw-jax-results/.
      overwrite: replace earlier results in that folder.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    preset: Literal["demo", "quick", "tiny"] = "demo"
    out: Path | None = None
    overwrite: bool = False

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        return self.perform(console, command, f"Experiments: {', '.join(self.names)}", "run")

    def perform(self, console: Console, command: str, title: str, kind: str) -> int:
        """Run the experiments and print the verdicts."""
        from adamw_jax.lab.experiments import get_experiment
        from adamw_jax.lab.runs import new_folder, perform, say

        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be one or more different experiments, got {self.names}.")
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
      optimizers: two or more names; the first is compared with each of the others.
      seeds: number of seeds, 2 or more.
      steps: steps per run; by default 400 on digits and 960 on mnist1d.
      lr_grid: learning rates, the same for every optimizer.
      weight_decay: decoupled decay of the optimizers that decay by default, such as adamw.
      b2: decay rate of the second moment, for optimizers whose default is Adam's 0.999. Short runs
        need a smaller one.
      schedule: schedule of the learning rate.
      out: folder for the results; by default a new one under adamw-jax-results/.
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
        """Run the command and return the exit status."""
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
      optimizer: name of the optimizer.
      seeds: number of runs.
      steps: steps per run.
      start: first learning rate.
      end: last learning rate.
      weight_decay: decoupled decay.
      out: folder for the results; by default a new one under adamw-jax-results/.
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
        """Run the command and return the exit status."""
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
    """List optimizers, tasks and experiments.

    Attributes:
      pattern: shell-style pattern for names of optimizers, such as "adam*".
    """

    pattern: Annotated[str, tyro.conf.Positional] = "*"

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.catalogue import show_list

        return show_list(self.pattern, console)


@dataclasses.dataclass(frozen=True)
class Info:
    """Show the facts about an optimizer: arguments, formula, state, reference.

    Attributes:
      name: name of the optimizer.
    """

    name: Annotated[str, tyro.conf.Positional]

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.catalogue import show_info

        return show_info(self.name, console)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Show versions and devices, and test one step; exit with 1 if the library does not work."""

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.doctor import show_doctor

        return show_doctor(console)


@dataclasses.dataclass(frozen=True)
class Report:
    """Rebuild the report from the logs in a folder of results.

    Attributes:
      folder: folder with results.
    """

    folder: Annotated[Path, tyro.conf.Positional]

    def __call__(self, console: Console, command: str) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.report import build
        from adamw_jax.lab.runs import say

        say(build(self.folder), console)
        return 0


def _one(
    experiment: Any, settings: Any, title: str, options: Any, console: Console, command: str
) -> int:
    """Run one experiment with the user's settings and print its table."""
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
    """Parse and run a command; return its exit status."""
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name=name)] for name, kind in COMMANDS.items()
    )
    chosen: Any = tyro.cli(
        Union[kinds],  # type: ignore[valid-type]  # noqa: UP007
        prog="adamw-jax",
        args=list(arguments),
        description="Try, compare and look up optimizers of the Adam family for JAX.",
    )
    command = shlex.join(["adamw-jax", *arguments])
    console = Console() if sys.stdout.isatty() else Console(width=110)
    return chosen(console, command)
