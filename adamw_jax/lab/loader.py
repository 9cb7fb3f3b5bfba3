"""Load the user's tasks and optimizers from modules and files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adamw_jax.lab.choices import unknown
from adamw_jax.lab.task import Task
from adamw_jax.lab.tasks import TASKS
from adamw_jax.lab.train import task_of


def load(what: str, text: str) -> Any:
    """Return what ``"module:name"`` or ``"file.py:name"`` names.

    Args:
      what: what it is, for errors.
      text: the name.
    """
    source, _, name = text.rpartition(":")
    try:
        module = _file(Path(source)) if source.endswith(".py") else _module(source)
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(f"cannot load the {what} {text!r}: {error}") from error
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(unknown(f"name in {source}", name, known))
    return getattr(module, name)


def load_task(text: str) -> Task:
    """Return a task of the lab by its name, or the user's, or what the user's function returns."""
    if ":" not in text:
        if text not in TASKS:
            raise ValueError(
                f"{unknown('task', text, TASKS)} Or give a Task of your own as module:name or "
                "file.py:name."
            )
        return task_of(text)
    found = load("task", text)
    if not isinstance(found, Task) and callable(found) and _takes_nothing(found):
        found = found()
    if not isinstance(found, Task):
        raise ValueError(
            f"task {text!r} must be an adamw_jax.lab.Task or a function that returns one, got "
            f"{type(found).__name__}."
        )
    return found


def _takes_nothing(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
               for p in parameters)  # fmt: skip


def _module(name: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module
