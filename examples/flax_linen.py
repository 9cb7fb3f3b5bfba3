"""Flax Linen's TrainState on scikit-learn digits, with rules by parameter name.

Run with: python examples/flax_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import adamw_jax as aj

EPOCHS, BATCH = 12, 100


class Classifier(nn.Module):
    """One hidden layer with a norm before it."""

    @nn.compact
    def __call__(self, x):
        """Logits of a batch of images."""
        x = nn.relu(nn.Dense(128)(nn.LayerNorm()(x)))
        return nn.Dense(10)(x)


@jax.jit
def step(state, images, labels):
    """One update; returns the new state and the loss before it."""

    def loss_of(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def main():
    """Trains for some seconds, halfway at a pinned learning rate, and prints the accuracy."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    rules = aj.parameter_rules(
        {
            "*kernel": aj.Rule(),
            "*bias": aj.Rule(weight_decay=0.0),
            "*scale": aj.Rule(weight_decay=0.0, learning_rate_factor=0.1),
        }
    )
    tx = aj.radam(3e-3, b2=0.99, weight_decay=0.1, rules=rules)
    params = Classifier().init(jax.random.key(0), images[:1])["params"]
    print(aj.summary(tx, params))
    state = TrainState.create(apply_fn=Classifier().apply, params=params, tx=tx)
    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            state = state.replace(opt_state=aj.set_hyperparams(state.opt_state, learning_rate=1e-3))
        order = np.random.default_rng(epoch).permutation(1500)
        for batch in order.reshape(-1, BATCH):
            state, loss = step(state, images[batch], labels[batch])
        print(f"epoch {epoch + 1:2d}  loss {loss:.4f}")
    logits = state.apply_fn({"params": state.params}, images[1500:])
    accuracy = jnp.mean(logits.argmax(-1) == labels[1500:])
    print(f"test accuracy {accuracy:.1%}")
    assert accuracy > 0.95


if __name__ == "__main__":
    main()
