# %% [markdown]
# # Small state
#
# AdamW keeps eight bytes for each parameter. `storage=` keeps the moments in fewer bits. How many
# bytes are left, and what does it cost in accuracy?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import adamw_jax as aj

params = {"kernel": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
for storage in (None, "bfloat16", "float8", "8bit", "4bit"):
    total = aj.summary(aj.adamw(1e-3, storage=storage), params).splitlines()
    (line,) = (line for line in total if line.startswith("sum over"))
    print(storage or "float32", line.split()[-1], "bytes per parameter")

# %% [markdown]
# ## What a code keeps
#
# Numbers as moments have them, over many orders of magnitude. Each format stores them in blocks
# with a scale.

# %%
values = np.random.default_rng(0).normal(size=(64, 1024)) * np.logspace(-4, 0, 1024)
x = {"w": jnp.asarray(values, jnp.float32)}
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for storage in ("8bit", "4bit"):
    choice = aj.storage.choose(storage)
    back = aj.storage.decode_state(aj.storage.encode_state(x, x, choice))["w"]
    error = jnp.sqrt(jnp.mean((back - x["w"]) ** 2, 0))
    axis.loglog(np.logspace(-4, 0, 1024), error, label=storage, linewidth=1)
axis.set(xlabel="size of the numbers", ylabel="error")
axis.legend()

# %% [markdown]
# ## Does training notice?
#
# The same network, data and seeds; only the storage differs.

# %%
keys = jax.random.split(jax.random.key(0), 3)
data = jax.random.normal(keys[0], (512, 64))
target = jnp.sin(data @ jax.random.normal(keys[1], (64, 8)))


def loss_of(params):
    """Mean squared error of two layers."""
    return jnp.mean((jnp.tanh(data @ params["in"]) @ params["out"] - target) ** 2)


def train(storage, steps=200):
    """The loss of every step."""
    tx = aj.adamw(3e-3, storage=storage)
    first, second = jax.random.split(keys[2])
    params = {
        "in": jax.random.normal(first, (64, 256)) / 8,
        "out": jax.random.normal(second, (256, 8)) / 16,
    }

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[1]


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for storage in (None, "8bit", "4bit"):
    losses = train(storage)
    axis.semilogy(losses, label=f"{storage or 'float32'}: {float(losses[-1]):.4f}")
axis.set(xlabel="step", ylabel="loss")
axis.legend()

# %% [markdown]
# ## A run that is under way
#
# `migrate_state` puts the moments of a running optimizer into codes, and back.

# %%
small, plain = aj.adamw(3e-3, storage="8bit"), aj.adamw(3e-3)
params = {"in": jnp.ones((64, 256))}
state = plain.update(params, plain.init(params), params)[1]
state, report = aj.migrate_state(state, small, params)
report
