"""Declare what an optax transformation returns, so that stages can follow it.

>>> import optax
>>> as_direction(optax.scale_by_lion()).spec.kinds
'gradient -> direction'
>>> as_optimizer(optax.lion(1e-3)).spec.kinds
'gradient -> update'
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamw_jax._core.checks import switch
from adamw_jax._core.stage import Declared, Kind, Spec, Stage, Step, stage_of, transformation
from adamw_jax._core.wrapper import check_last

Tree = Any


def as_direction(tx: optax.GradientTransformation, *, negate: bool = False) -> Stage | Declared:
    """Declare that an optax transformation turns the gradient into a direction.

    Decay, rules and the learning rate of this library can follow it, and all that follows these::

        tx = compose(
            as_direction(optax.scale_by_lion()),
            decoupled_decay(0.1),
            scale_by_learning_rate(1e-4),
            lookahead(),
        )

    ``create(as_direction(optax.scale_by_lion()), 1e-4, weight_decay=0.1)`` builds the first three,
    with the common keywords of every optimizer. Its state stands under the name of the optax
    function; ``("lion", as_direction(...))`` gives it another name.

    Args:
      tx: a transformation without a learning rate, such as ``optax.scale_by_lion()``. Extra
        arguments of ``update`` reach it.
      negate: True for a complete optimizer with learning rate 1, such as
        ``optax.contrib.muon(1.0)``: it returns the step downhill, a direction points uphill.

    Returns:
      A stage *gradient -> direction*; ``tx`` itself if it is of this library and gives a direction.

    Raises:
      ValueError: ``tx`` is of this library and gives something else.

    Example:
      >>> import jax.numpy as jnp, optax, adamw_jax as aj
      >>> tx = aj.compose(aj.as_direction(optax.scale_by_adam()), aj.scale_by_learning_rate(1e-3))
      >>> sorted(aj.hyperparams(tx.init({"w": jnp.ones(2)})))
      ['learning_rate']
    """
    switch("negate", negate)
    return _declared(tx, Kind.DIRECTION, negate=negate)


def as_optimizer(tx: optax.GradientTransformation) -> Stage | Declared:
    """Declare that an optax transformation turns the gradient into an update.

    Lookahead, averages and rounding of this library can follow it::

        tx = compose(as_optimizer(optax.contrib.muon(1e-3)), average_iterates(kind="ema"))

    Its learning rate stays its own; with ``as_direction`` it gets that of this library. Put
    ``optax.MultiSteps`` around the whole recipe, not inside: what follows it would count its empty
    steps, too.

    Args:
      tx: a complete optimizer, which includes its learning rate. Extra arguments of ``update``
        reach it, such as ``value``, ``grad`` and ``value_fn`` of ``optax.lbfgs()``.

    Returns:
      A stage *gradient -> update*; ``tx`` itself if it is of this library and gives an update.

    Raises:
      ValueError: ``tx`` is of this library and gives something else.
      TypeError: ``tx`` is an ``optax.MultiSteps``.

    Example:
      >>> import jax.numpy as jnp, optax, adamw_jax as aj
      >>> tx = aj.compose(aj.as_optimizer(optax.adam(1e-3)), aj.lookahead())
      >>> slow = aj.eval_params(tx.init({"w": jnp.ones(2)}), {"w": jnp.ones(2)})
    """
    return _declared(tx, Kind.UPDATE)


def foreign(tx: Any, argument: str = "a stage") -> Spec:
    """Declare an optax transformation as a stage whose output has the kind of its input."""
    inner = transformation(tx, argument)

    def apply(flow: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        return inner.update(flow, state, step.params, **step.extra)

    return Spec(name_of(tx), None, None, apply, inner.init, {}, False, False, foreign=True)


def _declared(tx: Any, gives: Kind, *, negate: bool = False) -> Stage | Declared:
    if isinstance(tx, optax.MultiSteps):
        raise TypeError(
            "tx is an optax.MultiSteps, whose empty steps the following stages would count: put it "
            "around the whole recipe, optax.MultiSteps(compose(...), every_k_schedule=...)."
        )
    check_last(tx)
    if isinstance(tx, Declared):
        last = tx.declaration if isinstance(tx, Stage) else tx.declaration.specs[-1]
        if last.gives is gives and not negate:
            return tx
        raise ValueError(
            f"{last.name} is of adamw_jax and says itself what it takes and gives ({last.kinds}): "
            "put it into compose() as it is."
        )
    spec = foreign(tx, "tx")

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        moved, state = spec.apply(gradient, state, step)
        return jax.tree.map(lambda x: -x, moved) if negate else moved, state

    return stage_of(spec._replace(takes=Kind.GRADIENT, gives=gives, apply=apply))


def name_of(tx: Any) -> str:
    """Name the optax function that built ``tx``, from its closures: ``clip``, ``chain``, ..."""
    if isinstance(tx, optax.MultiSteps):
        return "multi_steps"
    for function in (tx.update, tx.init):
        qualified = getattr(function, "__qualname__", "")
        if ".<locals>" in qualified:
            return qualified.split(".<locals>")[0].rsplit(".", 1)[-1]
    return "transformation"
