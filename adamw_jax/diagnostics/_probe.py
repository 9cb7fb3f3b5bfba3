"""Record norms inside the step of an optimizer, without changing the step.

    gradient_norm |g|,  update_norm |u|,  param_norm |theta|,  update_ratio |u| / |theta|,
    effective_learning_rate |u| / |g|,    clip_rate: share of the steps that were clipped

g is the gradient that enters the probe, before the clippings inside it, and u is the update. A
step counts as clipped if a clipping shortens its input. Clippings are the stages that declare
``clips=True`` (``clip_gradient``, ``percentile_clipping``, ``clip_step``, ``clip_by_rms``) and
those of optax. The state holds scalars only. The norms cost one more pass over gradients, update
and parameters, for which XLA may write out an update that it would otherwise fuse into the addition
to the parameters.

>>> import jax.numpy as jnp
>>> from adamw_jax import clip_gradient, sgdw
>>> tx = probe(clip_gradient(1.0), sgdw(0.1))
>>> params = jnp.array([6.0, 8.0])
>>> _, state = tx.update(jnp.array([0.0, 4.0]), tx.init(params), params)
>>> for name, value in read_probe(state).items():
...     print(f"{name} {value:.3g}")
gradient_norm 4
update_norm 0.1
param_norm 10
update_ratio 0.01
effective_learning_rate 0.025
clip_rate 1
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.compose import Composed, compose, composed_like
from adamw_jax._core.gradients import square_norm, square_norm_of_tree
from adamw_jax._core.numerics import increment
from adamw_jax._core.stage import Kind, Spec, Stage, Step, stage, stage_of, tail
from adamw_jax._core.state import find

Tree = Any

NAME = tail("probe")

_SHORTER = 1.0 - 1e-6  # a smaller decrease of a norm is rounding


class ProbeState(NamedTuple):
    """State of ``probe``: the last step, in the default float dtype, and counts.

    Attributes:
      gradient: squared norm of the gradient, a scalar. With ``per_leaf`` this and the next two have
        one entry per leaf, in the order of ``jax.tree.leaves``.
      update: squared norm of the update.
      params: squared norm of the parameters before the step.
      steps: number of recorded steps, int32.
      clipped: number of recorded steps in which a clipping shortened its input, int32; None if the
        recipe consists of foreign transformations and none is known to clip.
    """

    gradient: jax.Array
    update: jax.Array
    params: jax.Array
    steps: jax.Array
    clipped: jax.Array | None


def probe(*stages: Any, per_leaf: bool = False) -> Composed:
    """Return ``compose(*stages)`` that also records the norms of its input and output.

    Args:
      *stages: as for ``compose``: an optimizer of this library or of optax, with clipping before it
        and averaging or rounding after it. A clipping outside the probe is not recorded. A foreign
        transformation counts as a clipping if its name contains "clip", like ``optax.clip``; name
        an ``optax.chain`` or your own function so by ``("clip", tx)``.
      per_leaf: record the norms of every parameter, three numbers each, not of the whole tree.

    Returns:
      A recipe with the same updates as ``compose(*stages)``. Its state has one entry more,
      ``stages["probe"]``, which ``read_probe`` reads. Its update needs params.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.probe(aj.clip_gradient(1.0), aj.adamw(1e-3))
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> round(float(aj.read_probe(state)["gradient_norm"]), 4)
      1.7321
    """
    switch("per_leaf", per_leaf)
    whole = compose(*stages)
    gives = [spec.gives for spec in whole.specs if spec.gives is not None]
    last = gives[-1] if gives else Kind.GRADIENT
    body, flow, known = [], Kind.GRADIENT, any(_turns(spec) for spec in whole.specs)
    for spec in whole.specs:
        foreign = spec.takes is None and flow is not Kind.MOMENTS
        clips = spec.clips or (foreign and "clip" in spec.name)
        known = known or clips
        body += [_before(flow), stage_of(spec), _after(flow)] if clips else [stage_of(spec)]
        flow = spec.gives or flow
    body = [_entrance(per_leaf), *body, _exit(last, per_leaf, known)]
    return composed_like(whole, [entry.spec for entry in body])


def read_probe(state: Any, params: Tree | None = None) -> dict[str, Any]:
    """Return the quantities of the last step by name; zeros before the first step.

    Args:
      state: the state of an optimizer with a ``probe``, under any wrapper.
      params: for a probe with ``per_leaf``: the parameters without frozen ones, to name the norms.

    Returns:
      A dict of ``gradient_norm``, ``update_norm``, ``param_norm``, ``update_ratio``,
      ``effective_learning_rate`` and ``clip_rate``, scalars. With ``per_leaf`` all but
      ``clip_rate`` are dicts by parameter name, or without ``params`` arrays in the order of
      ``jax.tree.leaves``. ``clip_rate`` is missing if it is not known. If the state has several
      probes (``optax.partition``), the path of its probe precedes each name.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.probe(aj.clip_gradient(1.0), aj.adamw(1e-3))
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> round(float(aj.read_probe(state)["gradient_norm"]), 4)
      1.7321
    """
    found = find(state, ProbeState)
    if not found:
        raise ValueError(
            f"there is no probe in this state, a {type(state).__name__}: wrap the optimizer, as in "
            "probe(clip_gradient(1.0), adamw(1e-3))."
        )
    prefixes = [f"{path}/" if len(found) > 1 else "" for path, _ in found]
    names = None if params is None else numerics.leaf_names(numerics.as_arrays(params))
    return {
        prefix + name: _named(value, names)
        for prefix, (_, node) in zip(prefixes, found, strict=True)
        for name, value in _quantities(numerics.on_device(node)).items()
    }


def _quantities(node: ProbeState) -> dict[str, jax.Array]:
    gradient, update, params = (jnp.sqrt(x) for x in node[:3])
    found = {
        "gradient_norm": gradient,
        "update_norm": update,
        "param_norm": params,
        "update_ratio": _ratio(update, params),
        "effective_learning_rate": _ratio(update, gradient),
    }
    if node.clipped is not None:
        found["clip_rate"] = _ratio(numerics.scalar(node.clipped), numerics.scalar(node.steps))
    return found


def _named(value: jax.Array, names: list[str] | None) -> Any:
    if names is None or not value.ndim:
        return value
    if len(names) != len(value):
        raise ValueError(
            f"params has {len(names)} leaves {names}, but the probe saw {len(value)}: leave out "
            "frozen and masked leaves, or omit params."
        )
    return dict(zip(names, value, strict=True))


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Divide; 0 / 0 is 0, and other quotients by 0 are very large."""
    return part / jnp.maximum(whole, jnp.finfo(whole.dtype).tiny)


def _turns(spec: Spec) -> bool:
    """Return whether a stage takes the gradient and returns something else."""
    return spec.takes is Kind.GRADIENT and spec.gives is not Kind.GRADIENT


def _squares(tree: Tree, per_leaf: bool) -> jax.Array:
    leaves = jax.tree.leaves(lax.stop_gradient(tree))
    if per_leaf:
        empty = jnp.zeros([0], numerics.default_float())
        return jnp.stack([square_norm(x) for x in leaves]) if leaves else empty
    return square_norm_of_tree(leaves)


def _entrance(per_leaf: bool) -> Stage:
    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        step.facts.probe_gradient = _squares(gradient, per_leaf)
        return gradient, state

    return stage("probe_gradient", Kind.GRADIENT, Kind.GRADIENT, apply)


def _before(kind: Kind) -> Stage:
    """Return a stage that records the norm before a clipping."""

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        step.facts.probe_before = _squares(flow, False)
        return flow, state

    return stage("probe_before", kind, kind, apply)


def _after(kind: Kind) -> Stage:
    """Return a stage that records whether a clipping, or one before it, shortened its input."""

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        facts = step.facts
        assert facts.probe_before is not None
        shorter = _squares(flow, False) < facts.probe_before * _SHORTER**2
        known = facts.probe_clipped
        facts.probe_clipped = shorter if known is None else known | shorter
        return flow, state

    return stage("probe_after", kind, kind, apply)


def _exit(kind: Kind, per_leaf: bool, clips: bool) -> Stage:
    def init(params: Tree) -> ProbeState:
        shape = (len(jax.tree.leaves(params)),) if per_leaf else ()
        gradient, update, theta = (jnp.zeros(shape, numerics.default_float()) for _ in range(3))
        clipped = jnp.zeros([], jnp.int32) if clips else None
        return ProbeState(gradient, update, theta, jnp.zeros([], jnp.int32), clipped)

    def apply(update: Tree, state: ProbeState, step: Step) -> tuple[Tree, ProbeState]:
        clipped, now = state.clipped, step.facts.probe_clipped
        if clipped is not None and now is not None:
            clipped = lax.select(now, increment(clipped), clipped)
        assert step.facts.probe_gradient is not None
        return update, ProbeState(
            step.facts.probe_gradient,
            _squares(update, per_leaf),
            _squares(step.params, per_leaf),
            increment(state.steps),
            clipped,
        )

    return stage(NAME, kind, kind, apply, init=init, needs_params=True)
