# %% [markdown]
# # Looking at curvature
#
# How sharp is the loss, what does its spectrum look like, and how near is an optimizer to the
# edge at which it becomes unstable?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import adamw_jax as aj
from adamw_jax import curvature

keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(keys[0], (128, 4))
batch = (x, jnp.sin(3 * x[:, :1]))
params = {
    "in": jax.random.normal(keys[1], (4, 32)),
    "out": jax.random.normal(keys[2], (32, 1)) / 6,
}


def loss_of(params, batch):
    """Mean squared error of two layers."""
    return jnp.mean((jnp.tanh(batch[0] @ params["in"]) @ params["out"] - batch[1]) ** 2)


# %% [markdown]
# ## The spectrum at the start
#
# A few large eigenvalues, and many near zero.

# %%
density = curvature.spectral_density(loss_of, params, batch, k=32, key=keys[3])
density.plot()

# %% [markdown]
# ## Gradient descent at the edge of stability
#
# Gradient descent with rate lr is stable on a quadratic if the largest eigenvalue is below
# 2 / lr. On a network the sharpness goes there, from below or above, and hovers.

# %%
rate = 0.2
threshold = float(curvature.stability_threshold("sgd", rate, 0.0))
tx = aj.sgdw(rate, momentum=None)


@jax.jit
def step(params, state):
    """One step of gradient descent."""
    updates, state = tx.update(jax.grad(loss_of)(params, batch), state, params)
    return optax.apply_updates(params, updates), state


measure = jax.jit(lambda params: curvature.sharpness(loss_of, params, batch, key=keys[3]))
moved, state, seen = params, tx.init(params), []
for number in range(601):
    if number % 30 == 0:
        seen.append((number, float(measure(moved)), float(loss_of(moved, batch))))
    moved, state = step(moved, state)
steps, sharpness, losses = zip(*seen, strict=True)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(steps, sharpness, marker=".")
axes[0].axhline(threshold, linestyle="--", color="grey")
axes[0].set(xlabel="step", ylabel="largest eigenvalue")
axes[1].semilogy(steps, losses)
axes[1].set(xlabel="step", ylabel="loss")

# %% [markdown]
# ## What Adam sees
#
# Adam divides the gradient, so its stability depends on the Hessian after that division.

# %%
tx = aj.adam(1e-2)
state = tx.init(params)
adam_step = jax.jit(tx.update)
moved = params
for _ in range(100):
    updates, state = adam_step(jax.grad(loss_of)(moved, batch), state, moved)
    moved = optax.apply_updates(moved, updates)
plain = curvature.sharpness(loss_of, moved, batch, key=keys[3])
scaled = curvature.preconditioned_sharpness(loss_of, moved, batch, tx, state, key=keys[3])
limit = curvature.stability_threshold("adam", 1e-2, 0.9)
print(f"sharpness {plain:.1f}, after the division {scaled:.0f}, stable below {limit:.0f}")

# %% [markdown]
# ## Is the Hessian uneven?
#
# `r_med` compares the largest second derivative of each parameter with the median. Adaptive
# methods are at home where it is large.

# %%
diagonal = curvature.hessian_diag(loss_of, moved, batch)
{name: float(ratio) for name, ratio in curvature.r_med(diagonal).items()}
