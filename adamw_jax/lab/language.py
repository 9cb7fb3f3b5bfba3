"""Generate sentences of a small language that a small model learns in a minute.

Words belong to classes. The class of a word is drawn from a sparse random table, given the class of
the previous word. Within a class the word of rank k has a probability proportional to k^-1.5, so
most words are rare, as in real text. Some words repeat the word ``BACK`` places before, which a
model can only predict by attention. Nothing is downloaded, and no sentence appears twice.

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
    """Draw words of shape (count, length), int32 in 0..WORDS - 1, determined by the seed."""
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
