# %% [markdown]
# # First steps with adamw_jax
#
# An optimizer is a list of stages. This notebook trains a small network on scikit-learn's
# digits, looks into the optimizer while it runs, and builds a recipe that no paper has.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import adamw_jax as aj

images, labels = map(np.asarray, load_digits(return_X_y=True))
order = np.random.default_rng(0).permutation(len(labels))
images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)
train, test = (images[:1500], labels[:1500]), (images[1500:], labels[1500:])


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
    """Mean cross-entropy."""
    logits = logits_of(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


# %% [markdown]
# ## How large may the learning rate be?
#
# The range test runs one short training over growing learning rates.

# %%
finder = aj.adam(1.0)


@jax.jit
def range_test_step(state, learning_rate, batch):
    """One step at a given learning rate."""
    params, opt_state = state
    loss, gradients = jax.value_and_grad(loss_of)(params, batch)
    opt_state = aj.set_hyperparams(opt_state, learning_rate=learning_rate)
    updates, opt_state = finder.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


params = init(jax.random.key(0))
batches = [(train[0][i : i + 100], train[1][i : i + 100]) for i in range(0, 1500, 100)]
found = aj.lr_range_test(range_test_step, (params, finder.init(params)), batches, start=1e-5)
found.plot()
print({name: f"{rate:.2g}" for name, rate in found.suggestions.items()})

# %% [markdown]
# ## Train with a 1cycle
#
# One object drives the learning rate and, the other way, the momentum. The mask is a pattern on
# parameter names.

# %%
epochs = 10
cycle = aj.one_cycle(1e-2, total_steps=epochs * len(batches))
tx = aj.compose(
    optax.clip_by_global_norm(1.0),
    aj.adamw(cycle, b2=0.99, weight_decay=0.1, mask="*/kernel"),
    aj.lookahead(sync_period=5, slow_step_size=0.5),
)
print(aj.summary(tx, params))


@jax.jit
def step(params, state, batch):
    """One update."""
    loss, gradients = jax.value_and_grad(loss_of)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def accuracy(params):
    """Share of the test images that are classified right."""
    return float(jnp.mean(logits_of(params, test[0]).argmax(-1) == test[1]))


state, seen = tx.init(params), []
for _ in range(epochs):
    for batch in batches:
        params, state, loss = step(params, state, batch)
        live = aj.hyperparams(state)
        seen.append((float(loss), float(live["learning_rate"]), float(live["b1"])))
slow = aj.eval_params(state, params)
print(f"fast weights {accuracy(params):.1%}, slow weights {accuracy(slow):.1%}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
for axis, values, name in zip(
    axes, zip(*seen, strict=True), ["loss", "learning rate", "b1"], strict=True
):
    axis.plot(values)
    axis.set(xlabel="step", ylabel=name)

# %% [markdown]
# ## Pin a hyperparameter
#
# The code decides, unless you pin a value in the state. Nothing is compiled again.

# %%
compiled = step._cache_size()
state = aj.set_hyperparams(state, learning_rate=1e-4)
params, state, loss = step(params, state, batches[0])
state = aj.clear_hyperparams(state, "learning_rate")
params, state, loss = step(params, state, batches[0])
assert step._cache_size() == compiled

# %% [markdown]
# ## A recipe of your own
#
# AMSGrad's maximum, rectified, with Nesterov's look-ahead: three stages more.

# %%
tx = aj.compose(
    aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.99)),
    aj.moments.amsgrad_max(),
    aj.moments.nesterov(),
    aj.correct_bias(),
    aj.moments.rectify_variance(),
    aj.precondition(),
    aj.decoupled_decay(0.1, mask="*/kernel"),
    aj.scale_by_learning_rate(3e-3),
)
params = init(jax.random.key(1))
state = tx.init(params)
step.clear_cache()
for _ in range(epochs):
    for batch in batches:
        params, state, loss = step(params, state, batch)
print(f"test accuracy {accuracy(params):.1%}")
assert accuracy(params) > 0.9
