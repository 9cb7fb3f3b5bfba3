"""Flax NNX on scikit-learn digits: adamw with a 1cycle, weights averaged by Lookahead.

Run with: python examples/flax_nnx.py
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import adamw_jax as aj

EPOCHS, BATCH = 12, 100


def data(seed: int = 0):
    """Shuffled digits scaled to [0, 1]: 1,500 to train on, 297 to test."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


class Classifier(nnx.Module):
    """Two hidden layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 128, rngs=rngs)])
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        """Logits of a batch of images."""
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.out(x)


def loss_of(model, images, labels):
    """Mean cross-entropy."""
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def step(model, optimizer, images, labels):
    """One update; returns the loss before it."""
    loss, gradients = nnx.value_and_grad(loss_of)(model, images, labels)
    optimizer.update(model, gradients)
    return loss


def main():
    """Trains for some seconds and prints what came of it."""
    images, labels, test_images, test_labels = data()
    model = Classifier(nnx.Rngs(0))
    cycle = aj.one_cycle(1e-2, total_steps=EPOCHS * len(labels) // BATCH)
    tx = aj.compose(aj.adamw(cycle, b2=0.99, weight_decay=0.1, mask="*kernel"), aj.lookahead())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = jnp.nan
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for batch in order.reshape(-1, BATCH):
            loss = step(model, optimizer, images[batch], labels[batch])
    params = nnx.state(model, nnx.Param)
    nnx.update(model, aj.eval_params(optimizer.opt_state, params))
    accuracy = jnp.mean(model(test_images).argmax(-1) == test_labels)
    print(f"last training loss {loss:.4f}, test accuracy of the slow weights {accuracy:.1%}")
    assert accuracy > 0.95


if __name__ == "__main__":
    main()
