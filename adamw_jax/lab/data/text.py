"""Turn words into a text for a language model: numbers and a vocabulary."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text in three parts.

    Attributes:
      train: numbers of the words, int32.
      validation: the same.
      test: the same.
      words: the vocabulary; the place of a word is its number.
      about: where the text is from, for the report.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    words: tuple[str, ...]
    about: str = ""


def numbered(parts: Mapping[str, Sequence[str]], size: int | None = None, about: str = "") -> Text:
    """Return a text from its words.

    Args:
      parts: the words of each of ``SPLITS``.
      size: words in the vocabulary, the most frequent of the training text and ``UNKNOWN``, which
        takes the place of all others; None for all.
      about: where the text is from.

    >>> text = numbered({"train": "a b a c".split(), "validation": ["b"], "test": ["d"]}, size=3)
    >>> text.words, text.train.tolist(), text.test.tolist()
    (('<unk>', 'a', 'b'), [1, 2, 1, 0], [0])
    """
    counts = collections.Counter(parts["train"])
    del counts[UNKNOWN]
    common = counts.most_common(None if size is None else size - 1)
    words = (UNKNOWN, *(word for word, _ in common))
    places = {word: place for place, word in enumerate(words)}
    numbers = (np.array([places.get(word, 0) for word in parts[name]], np.int32) for name in SPLITS)
    return Text(*numbers, words=words, about=about)
