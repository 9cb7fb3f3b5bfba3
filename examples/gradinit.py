"""GradInit rescues twelve plain ReLU layers whose first weights are too small.

Run with: python examples/gradinit.py
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import adamw_jax as aj
from adamw_jax.initialization import gradinit, overlapping_pair

DEPTH, WIDTH, GAIN, RATE, STEPS, BATCH = 12, 48, 0.5, 0.1, 600, 64


def initial_params(seed=0):
    """He's weights, half as large as they should be."""
    rng, sizes = np.random.default_rng(seed), [64, *[WIDTH] * (DEPTH - 1), 10]
    return [
        {
            "kernel": jnp.asarray(GAIN * rng.normal(0, (2 / m) ** 0.5, (m, n)), jnp.float32),
            "bias": jnp.zeros(n),
        }
        for m, n in itertools.pairwise(sizes)
    ]


def logits_of(params, x):
    """The network."""
    for i, layer in enumerate(params):
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def loss_fn(params, batch):
    """Mean cross-entropy."""
    images, labels = batch
    logits = logits_of(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(images, labels, size, seed):
    """Random batches without end."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(0, len(labels), size)
        yield images[chosen], labels[chosen]


def train(params, images, labels):
    """Plain SGD."""
    tx = aj.sgdw(RATE, momentum=None, weight_decay=None)
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    for batch in itertools.islice(batches(images, labels, BATCH, seed=1), STEPS):
        params, state = step(params, state, batch)
    return params


def main():
    """Trains from the weights as drawn and from the rescaled ones."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (images.astype(np.float32) - images.mean(dtype="f4")) / images.std(dtype="f4")
    labels = labels.astype(np.int32)
    params = initial_params()
    pairs = map(overlapping_pair, batches(images[:1400], labels[:1400], 3 * BATCH // 2, seed=2))
    rescaled, info = gradinit(
        params, loss_fn, pairs, eta=RATE, gamma=1.0, scale_lr=1e-2, num_steps=200
    )
    print("scales of the kernels:", *(f"{layer['kernel']:.2f}" for layer in info.scales))
    accuracy = {}
    for name, start in (("as drawn", params), ("after GradInit", rescaled)):
        trained = train(start, images[:1400], labels[:1400])
        right = logits_of(trained, images[1400:]).argmax(-1) == labels[1400:]
        accuracy[name] = float(right.mean())
        print(f"test accuracy {name}: {accuracy[name]:.1%}")
    assert accuracy["after GradInit"] > 0.6 > 0.2 > accuracy["as drawn"]


if __name__ == "__main__":
    main()
