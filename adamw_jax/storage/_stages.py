"""Encode the state of a stage or a recipe."""

from __future__ import annotations

from typing import Any

from adamw_jax._core.compose import composed_like
from adamw_jax._core.encoded import decode_state, encode_like
from adamw_jax._core.encoding import check_encoded
from adamw_jax._core.stage import Kind, Spec, Stage, Step, stage_of
from adamw_jax.storage._formats import Choice, choose, encode_state

Tree = Any


def store(recipe: Any, storage: Any) -> Any:
    """Return the stage or recipe with its state encoded; unchanged if ``storage`` is None."""
    if storage is None:
        return recipe
    choice = choose(storage)
    if isinstance(recipe, Stage):
        return stage_of(stored(recipe.spec, choice))
    return composed_like(recipe, [stored(spec, choice) for spec in recipe.specs])


def stored(spec: Spec, choice: Choice) -> Spec:
    """Declare a stage like ``spec`` that encodes its state, in ``compose`` and alone.

    Args:
      spec: the declaration of a stage; one without state does not change.
      choice: a result of ``choose``.
    """
    if spec.init is None:
        return spec
    start = spec.init

    def init(params: Tree) -> Any:
        return encode_state(start(params), params, choice)

    def apply(flow: Any, memory: Any, step: Step) -> tuple[Any, Any]:
        if not step.facts.decoded:
            shaped = flow.gradient if spec.takes is Kind.MOMENTS else flow
            check_encoded(spec.name, memory, init, shaped, choice.min_size)
        flow, new = spec.apply(flow, decode_state(memory), step)
        return flow, encode_like(memory, new)

    return spec.around(apply, init, storage=choice)
