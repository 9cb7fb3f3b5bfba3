"""Scale the loss so that float16 gradients neither vanish nor overflow.

    g = gradient / scale;   if it is finite: a step with g, else none and scale <- backoff scale
    after ``period`` finite gradients: scale <- growth scale

float16 has no magnitudes below 6e-8 and none above 65504. ``scaled_value_and_grad`` multiplies the
gradients by the scale before they are rounded; ``dynamic_loss_scale`` divides them again, in
float32. Micikevicius et al., ICLR 2018, 1710.03740. bfloat16 has the range of float32 and needs
none of this.

>>> import jax.numpy as jnp
>>> from adamw_jax import sgdw
>>> tx = dynamic_loss_scale(sgdw(0.1), initial=8.0)
>>> params = jnp.ones(2, jnp.float16)
>>> state = tx.init(params)
>>> grad_fn = scaled_value_and_grad(lambda p: jnp.sum(p * p), loss_scale(state))
>>> loss, gradient = grad_fn(params)
>>> float(loss), gradient
(2.0, Array([16., 16.], dtype=float16))
>>> updates, state = tx.update(gradient, state, params)
>>> updates.round(3)
Array([-0.2, -0.2], dtype=float32)
>>> updates, state = tx.update(gradient * jnp.inf, state, params)
>>> float(loss_scale(state))
4.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, whole_number
from adamw_jax._core.gradients import entering, norms_of, step_of
from adamw_jax._core.numerics import increment
from adamw_jax._core.stage import transformation
from adamw_jax._core.state import find
from adamw_jax._core.two_passes import step_unless
from adamw_jax._core.wrapper import Wrapper, wrapper
from adamw_jax.update._bad_values import devices_of, is_bad

Tree = Any

NAME = "dynamic_loss_scale"


class DynamicLossScaleState(NamedTuple):
    """State of ``dynamic_loss_scale``.

    Attributes:
      inner: state of the wrapped transformation.
      scale: the factor on the next loss, in the default float dtype; ``loss_scale`` reads it.
      finite: finite gradients since it has changed, int32.
      overflown: gradients that were not finite since the start, int32.
    """

    inner: Any
    scale: jax.Array
    finite: jax.Array
    overflown: jax.Array
    wraps = True


def dynamic_loss_scale(
    tx: optax.GradientTransformation,
    *,
    initial: float = 2.0**16,
    period: int = 2000,
    growth: float = 2.0,
    backoff: float = 0.5,
    axis_name: str | Sequence[str] | None = None,
) -> Wrapper:
    """Divide gradients by a loss scale, and adapt the scale to what float16 can hold.

    Args:
      tx: the optimizer. It gets gradients in float32 or wider, divided by the scale. Put clipping
        inside: ``dynamic_loss_scale(compose(clip_gradient(1.0), adamw(1e-3)))``. Put a guard
        and ``accumulate`` inside, too: ``dynamic_loss_scale(skip_bad_steps(...))`` counts what is
        not a matter of the scale. The other order raises, because the scale would not fall.
      initial: first scale, > 0; 65536 (PyTorch, Flax).
      period: finite gradients in a row, >= 1, after which the scale grows; 2000 (PyTorch, Flax).
      growth: factor > 1 of the growth; 2. It stays if the product is not finite.
      backoff: factor in (0, 1) after a gradient that is not finite; 0.5. The scale stays above the
        smallest normal number.
      axis_name: as for ``skip_bad_steps``: axes along which all devices skip a step and change the
        scale together.

    Returns:
      A transformation for the gradients of ``scaled_value_and_grad``. After a gradient that is not
      finite the update is 0, the state of ``tx`` stays exactly as it was, and only the scale falls.
      Updates are float32 or wider; ``optax.apply_updates`` rounds the sum to the parameter.

    Raises:
      ValueError: a number is out of its range, or (in ``update``) shards differ and ``tx`` has no
        ``norm_axes``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> tx = aj.update.dynamic_loss_scale(aj.adamw(1e-3))
      >>> state = tx.init({"w": jnp.ones(3)})
      >>> float(aj.update.loss_scale(state))
      65536.0
    """
    inner = transformation(tx, "tx")
    initial, period = number("initial", initial, above=0), whole_number("period", period)
    growth, backoff = (
        number("growth", growth, above=1),
        number("backoff", backoff, above=0, below=1),
    )
    devices, norm_axes = devices_of(inner, axis_name)

    def init(params: Tree) -> DynamicLossScaleState:
        scale = jnp.full([], initial, numerics.default_float())
        counts = (jnp.zeros([], jnp.int32) for _ in range(2))  # each its own, to be donated
        return DynamicLossScaleState(inner.init(params), scale, *counts)

    def update(
        updates: Tree, state: DynamicLossScaleState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, DynamicLossScaleState]:
        updates, params = entering(updates, params)
        with step_of(norm_axes, updates, params), norms_of(NAME):
            lost = devices.largest(is_bad(updates).astype(jnp.int32))

            def step(updates: Tree, memory: Any) -> tuple[Tree, Any]:
                share = 1.0 / state.scale
                given = jax.tree.map(lambda g: numerics.scaled(share, numerics.widen(g)), updates)
                return inner.update(given, memory, params, **extra)

            moved, memory, _ = step_unless(step, lambda *_: lost, updates, state.inner)
        return moved, _adapted(state._replace(inner=memory), lost > 0, period, growth, backoff)

    return wrapper(NAME, inner, init, update, outermost=True)


def _adapted(
    state: DynamicLossScaleState, lost: jax.Array, period: int, growth: float, backoff: float
) -> DynamicLossScaleState:
    """Return the state with the scale for the next step."""
    scale, least = state.scale, float(jnp.finfo(state.scale.dtype).tiny)
    finite, grown = increment(state.finite), scale * growth
    grows = ~lost & (finite >= period)
    grown = lax.select(grows & lax.is_finite(grown), grown, scale)
    return state._replace(
        scale=lax.select(lost, jnp.maximum(scale * backoff, least), grown),
        finite=lax.select(lost | grows, jnp.zeros_like(finite), finite),
        overflown=lax.select(lost, increment(state.overflown), state.overflown),
    )


def loss_scale(state: Any) -> jax.Array:
    """Return the scale for the next loss.

    Args:
      state: the state of an optimizer with ``dynamic_loss_scale``, under any wrapper.

    Returns:
      A scalar of the default float dtype.

    Raises:
      ValueError: the state has no ``dynamic_loss_scale``, or several.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> tx = aj.update.dynamic_loss_scale(aj.adamw(1e-3), initial=1024.0)
      >>> float(aj.update.loss_scale(tx.init({"w": jnp.ones(3)})))
      1024.0
    """
    found = find(numerics.unbox(state), DynamicLossScaleState)
    if len(found) != 1:
        raise ValueError(
            f"state must hold one dynamic_loss_scale, found {len(found)}: wrap the whole "
            "optimizer, as in dynamic_loss_scale(adamw(1e-3))."
        )
    return numerics.on_device(found[0][1].scale)


def scaled_value_and_grad(
    function: Callable[..., Any],
    scale: jax.Array,
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Do as ``jax.value_and_grad``, with gradients of ``scale`` times the function.

    Args:
      function: returns a real scalar, or with ``has_aux`` a pair of it and more.
      scale: ``loss_scale(state)``.
      argnums: the positional arguments to differentiate, as for ``jax.grad``.
      has_aux: whether the function returns a pair.

    Returns:
      A function of the arguments of ``function``. It returns its value, which is not scaled, and
      the gradient times ``scale``, which ``dynamic_loss_scale`` divides again. The factor enters at
      the loss in its dtype, so compute the loss in float32: a float16 loss cannot take factors
      above 65504.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = jnp.ones(3, jnp.float16)
      >>> tx = aj.update.dynamic_loss_scale(aj.adamw(1e-3))
      >>> state = tx.init(params)
      >>> compute = aj.update.scaled_value_and_grad(jnp.sum, aj.update.loss_scale(state))
      >>> value, scaled = compute(params)
      >>> updates, state = tx.update(scaled, state, params)
    """
    places = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def value_and_grad(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        def of_some(*some: Any) -> Any:
            given = list(args)
            for place, value in zip(places, some, strict=True):
                given[place] = value
            return function(*given, **kwargs)

        chosen = [args[place] for place in places]
        value, back, *aux = jax.vjp(of_some, *chosen, has_aux=has_aux)
        gradients = back(lax.convert_element_type(scale, value.dtype))
        gradients = gradients[0] if isinstance(argnums, int) else gradients
        return ((value, *aux) if has_aux else value), gradients

    return value_and_grad
