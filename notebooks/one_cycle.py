# %% [markdown]
# # 1cycle and the range test
#
# 1cycle raises the learning rate to a maximum and lets it fall to zero, while the momentum does
# the opposite. The range test says how large the maximum may be.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import adamw_jax as aj
from adamw_jax.lab import Task, lr_find, split

images, labels = map(np.asarray, load_digits(return_X_y=True))
data = split((images.astype(np.float32) / 16, labels.astype(np.int32)), batch_size=100)


def init(key):
    """Two layers of a small perceptron."""
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (64, 64)) / 8, "bias": jnp.zeros(64)},
        "out": {"kernel": jax.random.normal(second, (64, 10)) / 8, "bias": jnp.zeros(10)},
    }


def logits_of(params, x):
    """Class scores."""
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def loss_of(params, batch):
    """Cross-entropy of each image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch[0]), batch[1])


# %% [markdown]
# ## The range test
#
# It trains once, briefly, while the rate grows. Suggestions lie before the loss turns.

# %%
found = lr_find(Task(init, loss_of, data, name="digits"), "adamw")
found.plot()
found.suggestions

# %% [markdown]
# ## The shapes of a cycle
#
# `fastai_v1` has cosines, `article` the three straight phases of fast.ai's article, `pytorch`
# what `OneCycleLR` does. Each drives the learning rate and b1.

# %%
steps = 300
cycles = {
    name: aj.one_cycle(1e-2, total_steps=steps, preset=name)
    for name in ("fastai_v1", "article", "pytorch")
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
at = jnp.arange(steps)
for name, cycle in cycles.items():
    axes[0].plot(at, jax.vmap(cycle.learning_rate)(at), label=name)
    axes[1].plot(at, jax.vmap(cycle.momentum)(at))
axes[0].set(xlabel="step", ylabel="learning rate")
axes[1].set(xlabel="step", ylabel="b1")
axes[0].legend()

# %% [markdown]
# ## Does it help?
#
# The same number of steps, at a constant rate and in a cycle.


# %%
def train(rate):
    """Train, and return the accuracy on the test images."""
    tx = aj.adamw(rate, b2=0.99, weight_decay=0.1, mask="*/kernel")

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(lambda p: loss_of(p, batch).mean())(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = init(jax.random.key(0))
    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(0, data.size, 100)
        params, state = step(params, state, jax.tree.map(lambda a, i=chosen: a[i], data.train))
    return float(jnp.mean(logits_of(params, data.test[0]).argmax(-1) == data.test[1]))


{"constant": train(3e-3), **{name: train(cycle) for name, cycle in cycles.items()}}
