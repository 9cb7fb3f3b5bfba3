"""A small language, for models small enough to learn it in a minute.

Words belong to classes. The class of a word follows from that of the word before by a sparse random
table; within a class the word of rank k has a probability in proportion to k^-1.5, so that most
words are rare, as in a text. A part of the words repeats the word ``BACK`` places before, which
takes attention to see. Nothing is downloaded, and no sentence is seen twice.

>>> sentences(2, 6, seed=0).shape
(2, 6)
"""

from __future__ import annotations

import numpy as np

CLASSES, PER_CLASS = 16, 32
WORDS = CLASSES * PER_CLASS
BACK, REPEATED = 5, 0.25
GRAMMAR_SEED = 0


def sentences(count: int, length: int, seed: int) -> np.ndarray:
    """Words of shape (count, length), int32, in 0..WORDS - 1; the same seed gives the same ones."""
    table = np.random.default_rng(GRAMMAR_SEED).dirichlet(np.full(CLASSES, 0.2), CLASSES)
    follow = np.cumsum(table, axis=1)
    rank = np.cumsum(np.arange(1, PER_CLASS + 1) ** -1.5)
    rng = np.random.default_rng([seed, count])
    drawn = rng.random((length, 3, count))
    words = np.empty((length, count), np.int32)
    kind = rng.integers(0, CLASSES, count)
    for t, (a, b, c) in enumerate(drawn):
        kind = np.minimum((follow[kind] < a[:, None]).sum(1), CLASSES - 1)
        words[t] = kind * PER_CLASS + np.searchsorted(rank, b * rank[-1])
        if t >= BACK:
            words[t] = np.where(c < REPEATED, words[t - BACK], words[t])
    return words.T
