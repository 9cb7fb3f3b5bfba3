"""``probe``: what an optimizer does, recorded inside its step, which stays as it is.

    gradient_norm |g|,  update_norm |u|,  param_norm |theta|,  update_ratio |u| / |theta|,
    effective_learning_rate |u| / |g|,    clip_rate: share of the steps that were clipped

g is the gradient as it comes into the probe, before the clippings in it, and u the update as it
leaves. A step is clipped if a clipping shortens what it is given: a stage that declares
``clips=True`` (``clip_gradient``, ``percentile_clipping``, ``clip_step``, ``clip_by_rms``), or one
of optax's. What adds to the gradient or scales it does not count. The state holds scalars only; the
norms are one more pass over gradients, update and parameters, for which XLA may write out an update
that it would have fused into the addition to the parameters.

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
from adamw_jax._core.stage import Kind, Spec, Stage, Step, increment, stage, stage_of, tail
from adamw_jax._core.state import find

Tree = Any

NAME = tail("probe")

_SHORTER = 1.0 - 1e-6  # a norm that fell by less is rounding


class ProbeState(NamedTuple):
    """What ``probe`` keeps of the last step, in the default float dtype.

    Attributes:
      gradient: squared norm of the gradient, a scalar; with ``per_leaf`` one for every leaf, in the
        order of ``jax.tree.leaves``, as the next two.
      update: of the update.
      params: of the parameters before the step.
      steps: steps recorded, int32.
      clipped: of these, the steps in which a clipping shortened something; None in a recipe of
        foreign transformations of which none is known to clip.
    """

    gradient: jax.Array
    update: jax.Array
    params: jax.Array
    steps: jax.Array
    clipped: jax.Array | None


def probe(*stages: Any, per_leaf: bool = False) -> Composed:
    """``compose(*stages)`` that records norms of what goes in and what comes out.

    Args:
      *stages: as for ``compose``: a whole optimizer, ours or optax's, clipping before it, tails. A
        clipping that stands before the probe, and not in it, is not seen.
        A transformation from elsewhere is taken for a clipping if its name has "clip" in it, as
        that of ``optax.clip`` has: ``("clip", tx)`` names an ``optax.chain`` or a function of yours
        so.
      per_leaf: norms of every parameter and not of the whole tree: three numbers for each.

    Returns:
      The recipe, whose updates are those of ``compose(*stages)``, and whose state has one entry
      more, ``stages["probe"]``. Its update needs params. ``read_probe`` reads it.

    Raises:
      ValueError: as for ``compose``, or one of the stages is a probe already.
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
    """The quantities above by name, scalars, as of the last step; zeros before the first.

    Args:
      state: the state of an optimizer with a ``probe``, under any wrapper.
      params: names the parameters of a probe with ``per_leaf``; the leaves that it sees, without
        frozen ones.

    Returns:
      Scalars by name. Of a probe with ``per_leaf`` all but ``clip_rate`` are dicts by parameter
      name, or without ``params`` arrays in the order of ``jax.tree.leaves``. ``clip_rate`` is
      missing where it is not known. Where several probes are in one state (``optax.partition``),
      each name is prefixed by the path of its probe.

    Raises:
      ValueError: there is no probe in the state, or ``params`` has another number of leaves.
    """
    found = find(state, ProbeState)
    if not found:
        raise ValueError(
            f"there is no probe in this state, a {type(state).__name__}: make the optimizer with "
            "probe(clip_gradient(1.0), adamw(1e-3))."
        )
    prefixes = [f"{path}/" if len(found) > 1 else "" for path, _ in found]
    names = None if params is None else numerics.leaf_names(params)
    return {
        prefix + name: _named(value, names)
        for prefix, (_, node) in zip(prefixes, found, strict=True)
        for name, value in _quantities(node).items()
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
            "what is frozen or masked, or read without params."
        )
    return dict(zip(names, value, strict=True))


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """0 of 0 is 0; of anything else it is very large."""
    return part / jnp.maximum(whole, jnp.finfo(whole.dtype).tiny)


def _turns(spec: Spec) -> bool:
    """Whether a stage makes something else of the gradient."""
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
    """Before a clipping."""

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        step.facts.probe_before = _squares(flow, False)
        return flow, state

    return stage("probe_before", kind, kind, apply)


def _after(kind: Kind) -> Stage:
    """Behind it; one of several clippings is enough."""

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
