"""Mix a language model with a pointer into the text that it has just read.

Grave, Joulin & Usunier, Improving Neural Language Models with a Continuous Cache, ICLR 2017,
arXiv 1612.04426.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Cache:
    """A neural cache. The defaults are those of AWD-LSTM and the article for WikiText-2.

    The hidden state h_i with which word w_(i+1) was predicted is its key:

        p_cache(w | t) ~ sum over i of [w_(i+1) = w] exp(theta h_t . h_i),   t - window <= i < t
        p = (1 - share) p_model + share p_cache

    Attributes:
      theta: how sharply the cache prefers similar states.
      share: weight of the cache, the papers' lambda.
      window: number of positions that the cache holds.
    """

    theta: float = 0.662
    share: float = 0.1279
    window: int = 3785

    def start(self, size: int) -> tuple[jax.Array, jax.Array]:
        """Return an empty cache: keys of shape (window, size), and words, -1 where it is empty."""
        return jnp.zeros((self.window, size)), jnp.full(self.window, -1, jnp.int32)

    def __call__(
        self, held: Any, hidden: jax.Array, targets: jax.Array, losses: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Predict the next positions of one text.

        Args:
          held: the cache before them.
          hidden: hidden states, shape (positions, size).
          targets: the words that followed, shape (positions,).
          losses: -log p_model of these words.

        Returns:
          The cache after them, and -log p of each word.
        """
        keys, words = jnp.concatenate([held[0], hidden]), jnp.concatenate([held[1], targets])
        query, key = jnp.arange(hidden.shape[0])[:, None], jnp.arange(keys.shape[0])[None]
        seen = (key >= query) & (key < query + self.window) & (words >= 0)[None]
        scores = jnp.where(seen, self.theta * hidden @ keys.T, -jnp.inf)
        right = jnp.where(words[None] == targets[:, None], scores, -jnp.inf)
        pointed = jax.nn.logsumexp(right, -1) - jax.nn.logsumexp(scores, -1)
        mixed = -jnp.logaddexp(math.log1p(-self.share) - losses, math.log(self.share) + pointed)
        held = keys[-self.window :], words[-self.window :]
        return held, jnp.where(seen.any(-1), mixed, losses)
