# %% [markdown]
# # Compose your own optimizer
#
# Every optimizer of this library is a list of stages. Read one, change a line, add a stage of
# your own.

# %%
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import adamw_jax as aj
from adamw_jax import extend

tx = aj.adamw(1e-2, weight_decay=0.1)
tx

# %% [markdown]
# Four kinds of value flow through the list: gradient, moments, direction and update. Each stage
# says what it takes and what it gives, so a wrong order is refused before anything runs.

# %%
params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
print(aj.summary(tx, params))
try:
    aj.compose(aj.scale_by_learning_rate(1e-2), aj.precondition())
except ValueError as error:
    print(error)

# %% [markdown]
# ## Add an idea by a line
#
# AMSGrad's maximum and Lookahead, around AdamW.

# %%
more = aj.compose(
    aj.clip_gradient(1.0),
    aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.99)),
    aj.moments.amsgrad_max(),
    aj.correct_bias(),
    aj.precondition(1e-8),
    aj.decoupled_decay(0.1, mask="kernel"),
    aj.scale_by_learning_rate(1e-2),
    aj.lookahead(),
)

# %% [markdown]
# ## A stage of your own
#
# This one makes a step shorter where its direction turns: it multiplies each leaf by the cosine
# of the angle to the direction before, but not by less than `floor`. `floor` is a
# hyperparameter like any other: it can be a schedule, and it is live in the state.


# %%
class AgreementState(NamedTuple):
    """The direction of the step before."""

    previous: dict


def scale_by_agreement(floor=0.1):
    """Shorten steps that turn."""

    def init(params):
        return AgreementState(extend.zeros(params))

    def apply(direction, state, step):
        direction = jax.tree.map(extend.widen, direction)

        def leaf(d, p):
            length = jnp.sqrt(jnp.sum(d * d) * jnp.sum(p * p))
            cosine = jnp.sum(d * p) / jnp.where(length > 0, length, 1.0)
            return d * jnp.maximum(cosine, step["floor"])

        return jax.tree.map(leaf, direction, state.previous), AgreementState(direction)

    kind, declared = extend.Kind.DIRECTION, extend.declare(floor=extend.nonnegative(floor))
    return extend.stage("agreement", kind, kind, apply, init=init, hyperparams=declared)


turning = aj.compose(
    aj.scale_by_adam(b2=0.99), scale_by_agreement(0.1), aj.scale_by_learning_rate(1e-2)
)

# %% [markdown]
# ## Watch the paths
#
# A narrow valley, from the same point.


# %%
def valley(x):
    """A quadratic with curvatures 1 and 30."""
    return 0.5 * (x[0] ** 2 + 30 * x[1] ** 2)


def path(tx, steps=150):
    """All points on the way."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(valley)(x), state, x)
        return (optax.apply_updates(x, updates), state), x

    start = jnp.array([-1.0, 0.6])
    return jax.lax.scan(step, (start, tx.init(start)), None, length=steps)[1]


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, one in {"AdamW": aj.adamw(1e-2), "agreement": turning, "SGD": aj.sgdw(1e-2)}.items():
    axis.plot(*path(one).T, label=name)
axis.legend()

# %% [markdown]
# The stage is composed, saved, pinned and checked like those of the library.

# %%
state = aj.set_hyperparams(turning.init(params), floor=0.5)
aj.hyperparams(state)["floor"]
