"""Say what is trained: a model, a loss and data."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

Tree = Any
"""A pytree: dicts, tuples and the like of arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Examples to train on, to choose settings with, and to report.

    Attributes:
      train: the training data, in one of three forms. *Arrays*: a tuple or dict (a pytree) of
        arrays with one entry per example, which are shuffled anew in every epoch, by the seed of
        the run. *Batches*: a list or another iterable of batches; each run reads it from its start
        and again when it ends. An iterator is read once and its batches are kept, so every run
        sees them in this order. *A function* of the seed that returns an iterable of batches.
      validation: arrays as above, or an iterable of batches; settings are chosen on it.
      test: the same; results are reported on it and nothing is chosen. None to report on
        ``validation``.
      batch_size: examples per step, if ``train`` consists of arrays; None for 32, or all if there
        are fewer.
    """

    train: Tree
    validation: Tree
    test: Tree = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Check the shapes, and join batches of held-out data."""
        for name in ("validation", "test"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _joined(name, value))
        if is_arrays(self.train):
            object.__setattr__(self, "train", jax.tree.map(np.asarray, self.train))
            size = examples("train", self.train)
            if self.batch_size is None:
                object.__setattr__(self, "batch_size", min(32, size))
            elif not 1 <= self.batch_size <= size:
                raise ValueError(
                    f"batch_size must be between 1 and the {size} training examples, got "
                    f"{self.batch_size}."
                )
        elif hasattr(self.train, "__next__"):
            object.__setattr__(self, "train", _Kept(self.train))
        elif not (callable(self.train) or hasattr(self.train, "__iter__")):
            raise TypeError(
                "train must be a tuple or dict of arrays, an iterable of batches, or a function of "
                f"the seed that returns one, got {type(self.train).__name__}."
            )

    @property
    def size(self) -> int | None:
        """The number of training examples; None if ``train`` gives batches."""
        return examples("train", self.train) if is_arrays(self.train) else None

    @property
    def held_out(self) -> dict[str, Tree]:
        """The data for evaluation, by the name of the split."""
        splits = {"validation": self.validation, "test": self.test}
        return {name: tree for name, tree in splits.items() if tree is not None}

    def batches(self, seed: int) -> Iterator[Tree]:
        """Yield the batches of a run without end; only for data that is not arrays.

        Args:
          seed: seed of the run.
        """
        while True:
            found = False
            source: Any = self.train(seed) if callable(self.train) else self.train
            for batch in source:
                found = True
                yield jax.tree.map(np.asarray, batch)
            if not found:
                raise ValueError("train must give at least one batch, but it is empty.")


def split(
    arrays: Tree,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    batch_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Split examples at random into training, validation and test data.

    Args:
      arrays: a pytree of arrays with one entry per example, such as ``(inputs, labels)``.
      validation: share of the examples for choosing settings.
      test: share for the results.
      batch_size: examples per step; None for 32, or all if there are fewer.
      seed: seed of the split.

    >>> data = split((np.arange(10.0), np.arange(10)), batch_size=2)
    >>> data.size, len(data.validation[0]), len(data.test[0])
    (6, 2, 2)
    """
    if validation <= 0 or test <= 0 or validation + test >= 1:
        raise ValueError(
            "validation and test must be shares > 0 with a sum below 1, got "
            f"{validation} and {test}."
        )
    arrays = jax.tree.map(np.asarray, arrays)
    size = examples("arrays", arrays)
    order = np.random.default_rng(seed).permutation(size)
    held, reported = max(1, round(validation * size)), max(1, round(test * size))
    parts = np.split(order, [size - held - reported, size - reported])
    return Data(*(jax.tree.map(lambda a, p=p: a[p], arrays) for p in parts), batch_size=batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What the optimizers are compared on.

    The functions are traced by JAX, so they must be pure. ``from_nnx``, ``from_linen`` and
    ``from_equinox`` make a task of a model.

    Attributes:
      init: ``key -> params``, any pytree of arrays; with ``stateful``, ``key -> (params, state)``.
      loss: ``(params, batch)`` or ``(params, batch, key)`` to the loss that is trained: a scalar,
        or an array with one loss per example, of which the mean is taken. ``key`` differs in every
        step. With ``stateful``: ``(params, state, batch)`` or ``(params, state, batch, key)`` to
        ``(loss, new state)``.
      data: the data.
      evaluate: ``(params, batch)`` to a dict of metrics, each a scalar or an array whose mean is
        taken; with ``stateful``, ``(params, state, batch)``. By default ``{"loss": loss}``, with a
        fixed key.
      stateful: there is a state that training changes but no gradient, as of batch norm.
      name: title in tables and reports.
      about: a sentence on model and data for the report.
      lanes: how many runs are trained in one program under ``jax.vmap``. None for 8 on a CPU and
        64 elsewhere. 1 for models that ``vmap`` slows down, such as large convolutions on a CPU.
        If ``vmap`` cannot trace the functions, runs are trained one by one.
      steps_per_call: steps in one call of a compiled program; None for all until the next
        evaluation. 1 for convolutions on a CPU, which XLA makes many times slower inside a loop.
      evaluated: examples that are evaluated at once.

    >>> import jax.numpy as jnp
    >>> x = np.linspace(-1, 1, 50)
    >>> line = Task(
    ...     init=lambda key: {"slope": jax.random.normal(key)},
    ...     loss=lambda params, batch: (params["slope"] * batch[0] - batch[1]) ** 2,
    ...     data=split((x, 3 * x)),
    ... )
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    data: Data
    evaluate: Callable[..., Any] | None = None
    stateful: bool = False
    name: str = "task"
    about: str = ""
    lanes: int | None = None
    steps_per_call: int | None = None
    evaluated: int = 1000

    def __post_init__(self) -> None:
        """Check what can be checked without tracing."""
        for field in ("init", "loss", "evaluate"):
            value = getattr(self, field)
            if not (callable(value) or (field == "evaluate" and value is None)):
                raise TypeError(f"{field} must be a function, got {value!r}.")
        if not isinstance(self.data, Data):
            raise TypeError(
                f"data must be a Data, got {type(self.data).__name__}: write data=split(arrays) "
                "for a tree of arrays with one entry per example."
            )
        for field in ("lanes", "steps_per_call"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be 1 or more, or None, got {value}.")
        if self.evaluated < 1:
            raise ValueError(f"evaluated must be 1 or more, got {self.evaluated}.")

    def start(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return initial parameters and state; the state is None without ``stateful``.

        Args:
          key: random key.
        """
        made = self.init(key)
        if not self.stateful:
            return made, None
        if not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "init must return (params, state) if stateful is True, got "
                f"{type(made).__name__}; return a pair or set stateful=False."
            )
        return made

    def losses(self, params: Tree, state: Tree, batch: Tree, key: jax.Array) -> tuple[Any, Tree]:
        """Return the loss or losses of a batch, and the new state.

        Args:
          params: parameters.
          state: state, or None without ``stateful``.
          batch: a batch of training examples.
          key: random key.
        """
        given = (params, state, batch, key) if self.stateful else (params, batch, key)
        made = self.loss(*given[: arity(self.loss, len(given))])
        return made if self.stateful else (made, None)

    def metrics(self, params: Tree, state: Tree, batch: Tree) -> dict[str, Any]:
        """Return the metrics of a batch by name.

        Args:
          params: parameters.
          state: state, or None without ``stateful``.
          batch: a batch of held-out examples.
        """
        if self.evaluate is None:
            return {"loss": self.losses(params, state, batch, jax.random.key(0))[0]}
        made = self.evaluate(*((params, state, batch) if self.stateful else (params, batch)))
        if not (isinstance(made, dict) and made and all(isinstance(key, str) for key in made)):
            raise TypeError(
                'evaluate must return a dict of metrics such as {"loss": ...}, got '
                f"{type(made).__name__}."
            )
        return made


class _Kept:
    """Batches of an iterator, which are kept as they are read, so that every run sees them."""

    def __init__(self, source: Iterator[Tree]):
        self.source, self.kept = source, []
        self.guard = threading.Lock()

    def __iter__(self) -> Iterator[Tree]:
        for number in range(2**62):
            with self.guard:
                if number == len(self.kept):
                    batch = next(self.source, self)
                    if batch is self:
                        return
                    self.kept.append(jax.tree.map(np.array, batch))
            yield self.kept[number]


def is_arrays(tree: Tree) -> bool:
    """Return whether a tree consists of arrays of examples; a list is one of batches."""
    if isinstance(tree, list | _Kept) or hasattr(tree, "__next__"):
        return False
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves
    )


def examples(name: str, tree: Tree) -> int:
    """Return the number of examples; every array must have the same."""
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"{name} must have arrays with the same number of examples, at least one, got the "
            f"shapes {[leaf.shape for leaf in jax.tree.leaves(tree)]}."
        )
    return sizes.pop()


def _joined(name: str, value: Any) -> Tree:
    if not is_arrays(value):
        if not hasattr(value, "__iter__"):
            raise TypeError(
                f"{name} must be a tuple or dict of arrays, or an iterable of batches, got "
                f"{type(value).__name__}."
            )
        batches = [jax.tree.map(np.asarray, batch) for batch in value]
        if not batches:
            raise ValueError(f"{name} must have at least one batch, but it is empty.")
        value = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    examples(name, value)
    return jax.tree.map(np.asarray, value)


def arity(function: Callable[..., Any], most: int, required: bool = False) -> int:
    """Return how many positional arguments a function takes, at most ``most``.

    With ``required`` those with a default do not count.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return most
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return most
    taken = (p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return min(most, sum(not required or p.default is p.empty for p in taken))
