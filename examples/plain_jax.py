"""Plain JAX with optax.chain: softmax regression on scikit-learn digits, stage by stage.

Run with: python examples/plain_jax.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import adamw_jax as aj

EPOCHS, BATCH = 20, 100


def loss_of(params, images, labels):
    """Mean cross-entropy of a linear classifier."""
    logits = images @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main():
    """Trains for some seconds and prints the accuracy of fast and slow weights."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)

    cycle = aj.one_cycle(3e-2, total_steps=EPOCHS * 1500 // BATCH)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        aj.estimate_moments(aj.ema(cycle.momentum or 0.9), aj.ema_of_squares(0.99)),
        aj.moments.amsgrad_max(),
        aj.correct_bias(),
        aj.precondition(),
        aj.schedules.scale_by_one_cycle(cycle),
        aj.lookahead(),
    )
    params = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    state = tx.init(params)

    @jax.jit
    def step(params, state, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    loss = jnp.nan
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(1500)
        for batch in order.reshape(-1, BATCH):
            params, state, loss = step(params, state, images[batch], labels[batch])
    print(f"last training loss {loss:.4f}")
    for name, weights in (("fast", params), ("slow", aj.eval_params(state, params))):
        predicted = (images[1500:] @ weights["kernel"] + weights["bias"]).argmax(-1)
        accuracy = jnp.mean(predicted == labels[1500:])
        print(f"test accuracy of the {name} weights {accuracy:.1%}")
        assert accuracy > 0.9


if __name__ == "__main__":
    main()
