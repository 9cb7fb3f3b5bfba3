"""Turn words into a text for a language model: numbers and a vocabulary."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "validation", "test")
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[.,;:!?()\"-]")
"""A word, a number or a mark."""


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


def divided(
    pieces: Sequence[Sequence[str]], what: str, size: int, limit: int | None, held_out: int | None
) -> Text:
    """Return a text whose pieces are dealt at random: a tenth each for validation and test.

    Args:
      pieces: the words of each piece, such as an article.
      what: the name of the pieces.
      size: words in the vocabulary.
      limit: words of the training text; None for all.
      held_out: words of each other text; None for all.
    """
    order = np.random.default_rng(0).permutation(len(pieces))
    held = len(pieces) // 10
    parts = np.split(order, [len(order) - 2 * held, len(order) - held])
    limits = (limit, held_out, held_out)
    words = [
        [word for i in part for word in pieces[int(i)]][:most]
        for part, most in zip(parts, limits, strict=True)
    ]
    about = (
        f"{len(pieces)} {what}, divided at random: {len(words[0]):,} words to train, "
        f"{len(words[1]):,} to choose and {len(words[2]):,} to test; a vocabulary of {size:,}"
    )
    return numbered(dict(zip(SPLITS, words, strict=True)), size, about)
