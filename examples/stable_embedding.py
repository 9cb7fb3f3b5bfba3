"""A stable embedding in Flax NNX, in a small language model: Xavier-uniform table, then LayerNorm.

The layer of Dettmers, Lewis, Shleifer & Zettlemoyer (ICLR 2022, arXiv 2110.02861): the table is
drawn Xavier-uniform, its output is normalised before positions are added, and the optimizer keeps
its state in 32 bits while all other large arrays have 8. The language is a random chain of order
two, whose entropy is the loss that no model falls below.

Run with: python examples/stable_embedding.py
"""

import numpy as np
import optax
from flax import nnx

import adamw_jax as aj

WORDS, WIDTH, LENGTH, BATCH, STEPS = 16, 32, 24, 64, 500


class StableEmbedding(nnx.Module):
    """Words to normalised vectors; positions are added to these."""

    def __init__(self, words, width, rngs):
        xavier = nnx.initializers.xavier_uniform()
        self.table = nnx.Embed(words, width, embedding_init=xavier, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, words):
        """Vectors of a batch of words."""
        return self.norm(self.table(words))


class LanguageModel(nnx.Module):
    """One block of causal attention and a hidden layer behind a stable embedding."""

    def __init__(self, rngs):
        self.embedding = StableEmbedding(WORDS, WIDTH, rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((LENGTH, WIDTH)))
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(4 * WIDTH, WORDS, rngs=rngs)

    def __call__(self, words):
        """Logits of the word after each."""
        x = self.embedding(words) + self.positions[: words.shape[1]]
        x = x + self.attention(x, mask=nnx.make_causal_mask(words))
        return self.out(nnx.relu(self.hidden(self.norm(x))))


def language(seed=0):
    """Odds of the next word after two, and the entropy of a word of a text."""
    odds = np.random.default_rng(seed).dirichlet(np.full(WORDS, 0.1), size=(WORDS, WORDS))
    pairs, entropies = np.full((WORDS, WORDS), WORDS**-2.0), []
    for _ in range(LENGTH - 1):
        entropies.append(-np.einsum("ab,abc,abc->", pairs, odds, np.log(odds + 1e-300)))
        pairs = np.einsum("ab,abc->bc", pairs, odds)
    return odds, np.mean(entropies)


def sentences(rng, odds, number, length):
    """Texts of the language, from random first words on."""
    text = np.zeros((number, length), np.int32)
    text[:, :2] = rng.integers(WORDS, size=(number, 2))
    thresholds = odds.cumsum(-1)
    for i in range(2, length):
        drawn = rng.random((number, 1)) < thresholds[text[:, i - 2], text[:, i - 1]]
        text[:, i] = np.minimum(WORDS - drawn.sum(-1), WORDS - 1)
    return text


def loss_of(model, text):
    """Mean cross-entropy of the words that two others precede."""
    logits = model(text[:, :-1])[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 2:]).mean()


@nnx.jit
def step(model, optimizer, text):
    """One update; returns the loss before it."""
    loss, gradients = nnx.value_and_grad(loss_of)(model, text)
    optimizer.update(model, gradients)
    return loss


def main():
    """Trains for some seconds and prints what came of it."""
    odds, entropy = language()
    rng = np.random.default_rng(1)
    model = LanguageModel(nnx.Rngs(0))
    cycle = aj.one_cycle(1e-2, total_steps=STEPS)
    tx = aj.adamw(cycle, b2=0.99, weight_decay=0.01, mask="*kernel")
    tx = aj.quantize_state(tx, "8bit", min_size=512, exempt="embedding/*")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(STEPS):
        step(model, optimizer, sentences(rng, odds, BATCH, LENGTH + 1))
    unseen = sentences(rng, odds, 1000, LENGTH + 1)
    test = float(loss_of(model, unseen))
    print(f"loss on unseen text {test:.3f}; of the language itself {entropy:.3f}")
    assert test < entropy + 0.2
    return test


if __name__ == "__main__":
    main()
