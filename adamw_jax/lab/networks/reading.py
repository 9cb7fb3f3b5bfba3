"""Train and evaluate a language model on running text, as AWD-LSTM does.

The text is cut into ``batch_size`` long columns. Each step reads the next words of every column,
and the hidden state goes on from step to step, but no gradient does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adamw_jax.lab.adapters import from_nnx
from adamw_jax.lab.data.text import Text
from adamw_jax.lab.networks.cache_pointer import Cache
from adamw_jax.lab.networks.language_model import LanguageModel, LanguageShape
from adamw_jax.lab.task import Data, Task

EVALUATED = 250
"""Words that are evaluated at once."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a text is read; the defaults are those of AWD-LSTM in the article.

    Attributes:
      batch_size: columns of the text.
      length: words of a column in a step, on average. As in AWD-LSTM, the number is drawn from a
        normal distribution with this mean, and once in twenty steps with half of it.
      scatter: standard deviation of this number. Here it exceeds ``length`` by two at most.
      activation: penalty on the squared outputs of the last layer (AR).
      change: penalty on the squared change of these outputs from word to word (TAR).
    """

    batch_size: int = 100
    length: int = 70
    scatter: int = 5
    activation: float = 3.0
    change: float = 1.5

    @property
    def longest(self) -> int:
        """The largest number of words of a column in a step."""
        return self.length + 2 * self.scatter

    def steps(self, words: int) -> int:
        """Return the steps of an epoch, if every step reads ``length`` words of a column."""
        return words // self.batch_size // self.length

    def batches(self, words: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
        """Yield batches without end.

        Each has ``words`` of shape (longest + 1, batch_size), the number ``length`` of words that
        count, and ``first``, which is true where the text begins.
        """
        rows = len(words) // self.batch_size
        if rows < self.longest + 1:
            raise ValueError(
                f"the text must have {self.batch_size * (self.longest + 1)} words or more for "
                f"{self.batch_size} columns and {self.longest} words a step, got {len(words)}."
            )
        table = words[: rows * self.batch_size].reshape(self.batch_size, rows).T
        table = np.concatenate([table, np.zeros_like(table[: self.longest])])
        rng = np.random.default_rng([seed, rows])
        while True:
            begin = 0
            while begin < rows - 2:  # at least two words, for TAR
                mean = self.length * (1.0 if rng.random() < 0.95 else 0.5)
                length = int(np.clip(rng.normal(mean, self.scatter), 5, self.longest))
                length = min(length, rows - 1 - begin)
                yield {"words": table[begin : begin + self.longest + 1],
                       "length": np.int32(length), "first": np.bool_(begin == 0)}  # fmt: skip
                begin += length


class Reader(nnx.Module):
    """A language model with the hidden state in which it stopped to read."""

    def __init__(self, shape: LanguageShape, batch_size: int, *, rngs: nnx.Rngs):
        """Draw the weights."""
        self.model = LanguageModel(shape, rngs=rngs)
        self.hidden = nnx.Variable(self.model.start(batch_size))


def language_task(
    text: Text, shape: LanguageShape, reading: Reading, cache: Cache | None = None, **options: Any
) -> Task:
    """Return the task of training a language model on a text.

    Metrics are the mean ``loss`` of a word and ``perplexity``, which is exp(loss), and with a cache
    also ``cache_loss`` and ``cache_perplexity``. Held-out text is read in one piece, without its
    end if that has fewer words than ``EVALUATED``.

    Args:
      text: the text.
      shape: the model; its vocabulary must be that of the text.
      reading: how the text is read.
      cache: a neural cache for the evaluation.
      **options: ``name``, ``about`` and ``lanes`` of ``Task``.
    """
    if shape.vocabulary != len(text.words):
        raise ValueError(
            f"vocabulary must be that of the text, {len(text.words)}, got {shape.vocabulary}."
        )

    def loss(reader: Reader, batch: Any) -> jax.Array:
        words, length = batch["words"], batch["length"]
        start = jax.tree.map(lambda h: jnp.where(batch["first"], 0.0, h), reader.hidden.get_value())
        plain, dropped, hidden = reader.model(words[:-1], start, length)
        reader.hidden.set_value(jax.lax.stop_gradient(hidden))
        counted = (jnp.arange(reading.longest) < length)[:, None, None]
        losses = _losses(reader.model, dropped, words[1:])
        return (
            jnp.mean(losses, where=counted[..., 0])
            + reading.activation * jnp.mean(dropped**2, where=counted)
            + reading.change * jnp.mean(jnp.diff(plain, axis=0) ** 2, where=counted[1:])
        )

    def evaluate(reader: Reader, batch: Any) -> dict[str, jax.Array]:
        model, columns = reader.model, batch.shape[0]
        words = batch.T[:-1].reshape(-1, EVALUATED, columns)
        targets = batch.T[1:].reshape(-1, EVALUATED, columns)
        empty = () if cache is None else cache.start(shape.embedding)
        empty = jax.tree.map(lambda a: jnp.stack([a] * columns), empty)

        def portion(carry: Any, now: Any) -> Any:
            state, held = carry
            plain, _, state = model(now[0], state)
            losses = _losses(model, plain, now[1])
            if cache is None:
                return (state, held), (losses,)
            held, mixed = jax.vmap(cache, (0, 1, 1, 1), (0, 1))(held, plain, now[1], losses)
            return (state, held), (losses, mixed)

        _, found = jax.lax.scan(portion, (model.start(columns), empty), (words, targets))
        metrics = {}
        for name, losses in zip(("", "cache_"), found, strict=False):
            metrics[f"{name}loss"] = mean = losses.mean()
            metrics[f"{name}perplexity"] = jnp.exp(mean)
        return metrics

    data = Data(
        lambda seed: reading.batches(text.train, seed),
        _held_out("validation", text.validation),
        _held_out("test", text.test),
    )
    return from_nnx(
        lambda rngs: Reader(shape, reading.batch_size, rngs=rngs), loss, data, evaluate, **options
    )


def _losses(model: LanguageModel, output: jax.Array, targets: jax.Array) -> jax.Array:
    logits = model.logits(output)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def _held_out(name: str, words: np.ndarray) -> np.ndarray:
    """Return a text as one example, with whole portions of words to predict."""
    size = (len(words) - 1) // EVALUATED * EVALUATED
    if not size:
        raise ValueError(
            f"the {name} text must have more than {EVALUATED} words, got {len(words)}."
        )
    return words[None, : size + 1]
