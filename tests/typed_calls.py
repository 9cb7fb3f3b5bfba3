"""Calls as users write them, right and wrong, for pyright: `make check STEPS=types` reads this.

Nothing runs it. Each wrong line names its error, and an error that does not come is one, too.
"""

# pyright: basic, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax as aj
from adamw_jax._core.declare import ScalarOrSchedule

cycle = aj.one_cycle(1e-3, 100)


def rate(count: jax.Array) -> jax.Array:
    """A schedule."""
    return 1e-3 / (1 + count)


# Right: every form of a learning rate, own arguments by place and by name, common keywords.
assert_type(aj.adamw(1e-3), aj.Composed)
aj.adamw(learning_rate=jnp.float32(1e-3), b1=np.float32(0.9))
aj.adamw(rate, 0.9, rate, weight_decay=lambda count: 0.1 / (1 + count), mask="*/kernel")
aj.adamw(optax.cosine_decay_schedule(1e-3, 100), decay="schedule", base_learning_rate=1e-3)
aj.lamb(aj.warm_restarts(1e-3, 10), rules=aj.parameter_rules({"*": aj.Rule()}))
aj.sgdw(aj.phases([aj.Phase(10, 0.1)]), momentum=None, storage="8bit")
aj.adafactor()
aj.koala_v(r=None, stacked="*/layers/*", weight_decay=0.1)
aj.amsgrad(cycle, maximum="corrected", eps_hat=True)
aj.padam(cycle, amsgrad=False, state_dtype=jnp.bfloat16)
assert_type(aj.scale_by_adam(0.9, rectify=True, state_dtype=jnp.bfloat16), aj.Composed)
aj.scale_by_lamb(weight_decay=0.1, mask="*/kernel")
aj.compose(aj.scale_by_radam(below="decay"), aj.scale_by_learning_rate(rate))
make: Callable[[float], aj.Composed] = aj.adabelief
kept: ScalarOrSchedule = cycle.learning_rate

# Wrong keywords.
aj.adamw(1e-3, no_such_argument=3)  # pyright: ignore[reportCallIssue]
aj.adan(1e-3, betas=(0.98, 0.92, 0.99))  # pyright: ignore[reportCallIssue]
aj.koala_m(b1=0.9)  # pyright: ignore[reportCallIssue]
aj.scale_by_adam(learning_rate=1e-3)  # pyright: ignore[reportCallIssue]
aj.scale_by_adam(weight_decay=0.1)  # pyright: ignore[reportCallIssue]
aj.scale_by_sgdw(schedule_inside=True)  # pyright: ignore[reportCallIssue]
aj.adam()  # pyright: ignore[reportCallIssue]

# Wrong types.
aj.adamw("1e-3")  # pyright: ignore[reportArgumentType]
aj.adamw(None)  # pyright: ignore[reportArgumentType]
aj.adamw(optax.sgd(0.1))  # pyright: ignore[reportArgumentType]
aj.adamw(1e-3, b1="0.9")  # pyright: ignore[reportArgumentType]
aj.adamw(1e-3, b1=cycle)  # pyright: ignore[reportArgumentType]
aj.adamw(1e-3, amsgrad="yes")  # pyright: ignore[reportArgumentType]
aj.adamw(1e-3, weight_decay=[0.1])  # pyright: ignore[reportArgumentType]
aj.radam(1e-3, rules={"*": 1.0})  # pyright: ignore[reportArgumentType]
aj.scale_by_radam(threshold="5")  # pyright: ignore[reportArgumentType]

# Keywords without a meaning for the optimizer.
aj.sgdw(0.1, amsgrad=True)  # pyright: ignore[reportCallIssue]
aj.adamax(0.1, rectify=True)  # pyright: ignore[reportCallIssue]
aj.amsgrad(0.1, amsgrad=False)  # pyright: ignore[reportCallIssue]
aj.koala_v(l2=0.1)  # pyright: ignore[reportCallIssue]
aj.scale_by_padam(eps_hat=True)  # pyright: ignore[reportCallIssue]
