"""``pack_small_leaves``: keep the state of small leaves in a few shared buffers.

    state of leaves 1 ... n:   [m_1 | m_2 | ... | m_n],  [v_1 | v_2 | ... | v_n]       flattened

Each array that enters or leaves a jitted step costs time, and compilation time grows faster than
the number of arrays. With many small leaves (norms, biases, thousands of tiny layers) this is most
of the cost of an optimizer. With packing, the gradients are joined end to end, the moments are
updated as one array, and the direction is cut into leaves again. Parameters, gradients and updates
do not change.

The first leaf of a group holds the buffer in the state, the others hold None.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw
>>> from adamw_jax.packing import repack_state
>>> params = {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 3)), "scale": jnp.ones(())}
>>> tx = pack_small_leaves(adamw(1e-3, mask="kernel"))
>>> state = tx.init(params)
>>> state.stages["estimate_moments"].first.moment["bias"].shape
(9,)
>>> plain = repack_state(state, adamw(1e-3, mask="kernel"), params)
>>> plain.stages["estimate_moments"].first.moment["kernel"].shape
(2, 3)
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import optax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch, whole_number
from adamw_jax._core.compose import Composed, composed_like
from adamw_jax._core.gradients import check_gradient, entering
from adamw_jax._core.stage import Kind, Spec, Step, transformation
from adamw_jax.packing._buffers import Packer

Tree = Any
State = Any


def pack_small_leaves(
    tx: optax.GradientTransformation,
    limit: int = 16384,
    group: int = 32,
    *,
    elementwise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Keep the state of small leaves in shared buffers.

    In a recipe of this library the stages from ``estimate_moments`` to ``precondition`` are packed,
    if they declare that they work element by element. All other stages work leaf by leaf as before:
    masks and rules by name, trust ratios, clipping, ``lookahead`` and averages. Any other
    transformation is packed as a whole, if you say that it works element by element.

    Args:
      tx: a recipe of this library, or an element-wise optax transformation.
      limit: leaves with fewer elements are packed. Larger ones are faster alone.
      group: leaves per buffer, >= 2. Steps are equally fast with 16 to 64, and fewer compile
        faster; one buffer for all takes longer to compile than no packing.
      elementwise: True to say that ``tx`` works element by element, where no stage declares it. An
        element of the update and of the state then depends only on the same element of gradient,
        parameter and state, in the same way for all leaves: no norms, no masks or labels. This is
        not checked. If it is wrong, so are the steps.

    Returns:
      The same optimizer with another layout of the state: the same steps up to rounding, the same
      dtypes and hyperparameters. ``repack_state`` converts a state from one layout to the other.
      Complex leaves are not packed. Neighbouring small leaves of the tree share a buffer; in an
      optax transformation they must have the same dtype.

    Raises:
      ValueError: the recipe has no moments, ``tx`` does not declare that it is element-wise, or (in
        ``init``) a small leaf is sharded.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {f"layer{i}": jnp.ones(8) for i in range(40)}
      >>> tx = aj.pack_small_leaves(aj.adamw(1e-3))
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    tx = transformation(tx, "tx")
    switch("elementwise", elementwise)
    packer = Packer(whole_number("limit", limit), whole_number("group", group, least=2))
    if isinstance(tx, Composed):
        return _packed_recipe(tx, packer, elementwise)
    if not elementwise:
        raise ValueError(
            "tx declares nothing, because it is no recipe of adamw_jax: if it works element by "
            "element, without norms, masks and labels, write pack_small_leaves(tx, "
            f"elementwise=True). {_PART}"
        )
    return _packed_whole(tx, packer)


_PART = (
    "Otherwise pack the element-wise part alone, as in optax.chain(optax.clip_by_global_norm(1.0), "
    "pack_small_leaves(optax.adam(1e-3), elementwise=True)), or leave packing out."
)


def _packed_recipe(tx: Composed, packer: Packer, vouched: bool) -> Composed:
    """Pack the stages on moments of a recipe, and so their state."""
    inside = [i for i, spec in enumerate(tx.specs) if Kind.MOMENTS in (spec.takes, spec.gives)]
    if not inside:
        raise ValueError(
            f"the recipe {[spec.name for spec in tx.specs]} has no stages on moments, so there is "
            "nothing to pack: use it without pack_small_leaves."
        )
    for i in inside:
        _check_packable(tx.specs[i], vouched)
    first, last = inside[0], inside[-1]
    specs = [*tx.specs]
    for i in inside:
        specs[i] = _packed_init(specs[i], packer)
    specs[first] = specs[first]._replace(apply=_entering(specs[first], packer))
    specs[last] = specs[last]._replace(apply=_leaving(specs[last], packer))
    return composed_like(tx, specs)


def _check_packable(spec: Spec, vouched: bool) -> None:
    if spec.storage is not None:
        raise ValueError(
            f"{spec.name} encodes its state leaf by leaf, which excludes packing: leave storage= "
            'out and write quantize_state(pack_small_leaves(tx), "8bit"), which packs the small '
            "leaves and encodes the large ones."
        )
    if spec.partial:
        raise ValueError(
            f"only({spec.name}, ...) selects leaves, but packing puts leaves into one buffer: "
            "leave only() out, or use optax.partition with a packed optimizer for each part."
        )
    if not (spec.elementwise or vouched):
        raise ValueError(
            f"{spec.name}, or a part in it, does not declare that it works element by element, so "
            "leaves cannot share a buffer. If it is your own and does, declare it with "
            "stage(..., elementwise=True) or Part(..., elementwise=True); otherwise leave "
            "pack_small_leaves out."
        )


def _packed_init(spec: Spec, packer: Packer) -> Spec:
    make = spec.init
    if make is None:
        return spec

    def init(params: Tree) -> State:
        packer.check_placement(params)
        return make(packer.pack(params))

    return spec.around(spec.apply, init)


def _entering(spec: Spec, packer: Packer) -> Any:
    """Make ``apply`` of the stage that takes gradients; it packs them."""

    def apply(gradient: Tree, state: State, step: Step) -> tuple[Any, State]:
        check_gradient(gradient, step.params)
        return spec.apply(packer.pack(gradient), state, dataclasses.replace(step, params=None))

    return apply


def _leaving(spec: Spec, packer: Packer) -> Any:
    """Make ``apply`` of the stage that gives the direction; it unpacks it."""

    def apply(record: Any, state: State, step: Step) -> tuple[Tree, State]:
        direction, state = spec.apply(record, state, step)
        like, packed = step.facts.gradient, jax.tree.structure(direction)
        for name, fact in step.facts.trees().items():
            if (
                name != "gradient"
                and not isinstance(fact, jax.Array)
                and jax.tree.structure(fact) == packed
            ):
                setattr(step.facts, name, packer.unpack(fact, like))
        return packer.unpack(direction, like), state

    return apply


def _packed_whole(
    inner: optax.GradientTransformationExtraArgs, packer: Packer
) -> optax.GradientTransformationExtraArgs:
    """Run a foreign transformation on packed gradients and parameters."""
    packer = dataclasses.replace(packer, by_dtype=True)

    def init(params: Tree) -> State:
        params = numerics.as_arrays(params)
        packer.check_placement(params)
        return inner.init(packer.pack(params))

    def update(updates: Tree, state: State, params: Tree | None = None, **extra: Any):
        updates, params = entering(updates, params)
        like = updates if params is None else params
        check_gradient(updates, params)
        packed = None if params is None else packer.pack(params)
        new, state = inner.update(packer.pack(updates, like), state, packed, **extra)
        return packer.unpack(new, like), state

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
