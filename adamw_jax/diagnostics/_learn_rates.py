"""Set learning rate and momentum from the curvature during training.

    every so many steps:   Ritz values of the Hessian  ->  lr_momentum_from_spectrum  ->  the state

As in Granziol, Zohren & Roberts, JMLR 2022, arXiv 2006.09092: 20 Lanczos steps on a fixed batch of
some thousand examples, every 1 to 20 epochs. Call it between steps. It sets hyperparameters in the
state, so the step does not recompile.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import hyperparams, sgdw
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.sum(batch * w**2)
>>> tx, params, curvatures = sgdw(1e-3), jnp.ones(3), jnp.array([1.0, 4.0, 9.0])
>>> state, learned = learn_rates(
...     tx.init(params), loss_fn, params, curvatures, key=jax.random.key(0), mu="non_bulk_min"
... )
>>> print(hyperparams(state)["learning_rate"].round(3), hyperparams(state)["momentum"].round(3))
0.25 0.25
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core.checks import one_of
from adamw_jax._core.state import ComposeState, find
from adamw_jax.curvature import Rates, hvp_fn, lanczos, lr_momentum_from_spectrum
from adamw_jax.curvature._arrays import random_direction
from adamw_jax.curvature._products import LossFn, Product, real_params
from adamw_jax.curvature._spectrum_rates import METHODS, SMALLEST
from adamw_jax.moments import MomentsState
from adamw_jax.state import hyperparams, set_hyperparams

Tree = Any


def learn_rates(
    state: Any,
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    *,
    key: jax.Array,
    method: str = "heavy_ball",
    mu: str = "median",
    num_steps: int = 20,
    product: Product = hvp_fn,
    learning_rate: str = "learning_rate",
    momentum: str = "momentum",
) -> tuple[Any, Rates]:
    """Return the state with learning rate and momentum set from the curvature, and both numbers.

    Args:
      state: of a recipe whose step is ``-lr m`` with m <- momentum m + g, such as ``sgdw``, under
        any wrapper. Adaptive methods have another curvature and raise an error. Do not use it for
        ``normalized_sgd`` either; its state looks like that of SGD, so there is no error.
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: the current parameters.
      batch: the batch for the curvature, the same each time, or ``Batches``. The curvature of a
        small batch is too large, see ``batch_hessian_extreme``.
      key: random key of the start vector.
      method: rule of ``lr_momentum_from_spectrum``; ``"nesterov"`` for ``sgdw(nesterov=True)``.
      mu: rule for the smallest curvature, of the same function; the authors' scripts use both.
      num_steps: number of Lanczos steps, one Hessian product each; 20 in the authors' scripts.
      product: the matrix: ``hvp_fn`` for the Hessian; ``gauss_newton_fn`` omits the curvature of
        the model itself.
      learning_rate: name of the learning rate in ``hyperparams(state)``.
      momentum: name of the momentum there. Without momentum only ``method="sgd"`` is possible.

    Returns:
      The state, in which both stay at these values until ``clear_hyperparams``, and the rates.

    Raises:
      ValueError: the curvature is zero or not finite, or ``state`` belongs to another method.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> tx = aj.sgdw(0.1, momentum=0.9)
      >>> state, rates = aj.diagnostics.learn_rates(
      ...     tx.init(params), loss_fn, params, batch, key=jax.random.key(0), num_steps=3
      ... )
    """
    one_of("method", method, METHODS)
    one_of("mu", mu, SMALLEST)
    _check_plain(state, learning_rate)
    rates = _rates(loss_fn, product, method, mu, num_steps, real_params(params), batch, key)
    if not all(bool(jnp.isfinite(x)) for x in rates):
        raise ValueError(
            f"the curvature gives no learning rate, got {rates}: it is zero or not finite at these "
            "parameters on this batch; give another batch, or train some steps first."
        )
    wanted = {learning_rate: rates.learning_rate, momentum: rates.momentum}
    if method == "sgd" and momentum not in hyperparams(state):
        del wanted[momentum]
    return set_hyperparams(state, wanted), rates


def _check_plain(state: Any, learning_rate: str) -> None:
    """Raise if steps are divided by a second moment, or made without ``estimate_moments``."""
    recipes = find(state, ComposeState)
    named = [node for path, node in recipes if learning_rate.startswith(f"{path}/")]
    for recipe in named or [node for _, node in recipes]:
        moments = [node for _, node in find(recipe, MomentsState)]
        plain = moments and not any(jax.tree.leaves(node.second) for node in moments)
        if plain and not any(
            domain.reshapes_step for domain in recipe.hyperparams.domains.values()
        ):
            continue
        raise ValueError(
            "learn_rates is for SGD, sgdw(...), whose step is -lr m with m <- momentum m + g; the "
            f"state has the hyperparameters {sorted(hyperparams(state))} and is that of another "
            "method: use preconditioned_sharpness for adaptive methods."
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _rates(
    loss_fn: LossFn,
    product: Product,
    method: str,
    mu: str,
    num_steps: int,
    params: Tree,
    batch: Any,
    key: jax.Array,
) -> Rates:
    start = random_direction(key, params)
    found = lanczos(product(loss_fn, params, batch), start, num_steps)
    return lr_momentum_from_spectrum(found.ritz_values, found.ritz_weights, method=method, mu=mu)
