"""Models as a user writes them, in three libraries; the tests also load this file by its path."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from adamw_jax import lab

RNG = np.random.default_rng(0)


def mine(learning_rate, weight_decay):
    """The user's own optimizer, of optax's parts."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=0.9),
    )


# A convolutional net with batch norm and dropout, on images.


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.convolution = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.convolution(images)))
        return self.head(self.dropout(hidden.mean((1, 2))))


def image_loss(net, batch):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1])


def image_metrics(net, batch):
    logits = net(batch[0])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return {"loss": loss, "accuracy": logits.argmax(-1).astype(batch[1].dtype) == batch[1]}


def images():
    labels = RNG.integers(0, 2, 90).astype(np.int32)
    pictures = RNG.standard_normal((90, 6, 6, 1)) * (1 + 1.5 * labels[:, None, None, None])
    return lab.split((pictures.astype(np.float32), labels), batch_size=16)


conv = lab.from_nnx(
    lambda rngs: Net(rngs=rngs), image_loss, images(), image_metrics, name="pictures"
)


# A transformer that predicts the next of some words.


class Transformer(linen.Module):
    words: int = 8
    width: int = 16

    @linen.compact
    def __call__(self, tokens, train=False):
        x = linen.Embed(self.words, self.width)(tokens)
        x = x + self.param("place", linen.initializers.normal(0.02), (tokens.shape[1], self.width))
        mask = linen.make_causal_mask(tokens)
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, deterministic=not train)(
            y, mask=mask
        )
        x = x + linen.Dense(self.width)(linen.gelu(linen.Dense(32)(linen.LayerNorm()(x))))
        return linen.Dense(self.words)(linen.Dropout(0.1, deterministic=not train)(x))


def next_word_loss(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean(-1)


def sentences(count):
    start = RNG.integers(0, 8, (count, 1))
    step = RNG.integers(1, 3, (count, 1))
    return ((start + step * np.arange(9)) % 8).astype(np.int32)


TRAINING = sentences(64)


def word_batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        yield TRAINING[rng.integers(0, 64, 16)]


def transformer():
    """A task that is made when it is asked for."""
    return lab.from_linen(
        Transformer(), next_word_loss, lab.Data(word_batches, sentences(20), sentences(20)),
        lambda logits, tokens: {"perplexity": jnp.exp(next_word_loss(logits, tokens))},
        inputs=lambda tokens: tokens, train={"train": True}, test={"train": False}, name="words",
    )  # fmt: skip


# A regression, with a module that is a function of one example.


class Curve(eqx.Module):
    net: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.net = eqx.nn.MLP(1, 1, 8, 2, key=key)
        self.dropout = eqx.nn.Dropout(0.05)

    def __call__(self, x, key=None):
        return self.net(self.dropout(x, key=key))


def curve_loss(curve, batch, key):
    inputs, targets = batch
    keys = jax.random.split(key, len(inputs))
    return (jax.vmap(curve)(inputs, keys) - targets).squeeze(-1) ** 2


def curve_metrics(curve, batch):
    return {"mse": (jax.vmap(curve)(batch[0]) - batch[1]) ** 2}


def points():
    x = RNG.uniform(-2, 2, (100, 1)).astype(np.float32)
    return lab.split((x, np.sin(2 * x)), batch_size=20)


regression = lab.from_equinox(Curve, curve_loss, points(), curve_metrics, name="curve")
