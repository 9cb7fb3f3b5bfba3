"""Make a task of a model of Flax NNX, Flax Linen or Equinox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from adamw_jax.lab.task import Data, Task, arity


def from_nnx(
    make: Callable[[Any], Any],
    loss: Callable[..., Any],
    data: Data,
    evaluate: Callable[[Any, Any], dict[str, Any]] | None = None,
    **options: Any,
) -> Task:
    """Return the task of training a Flax NNX module.

    Args:
      make: ``rngs -> module``. ``rngs`` is an ``nnx.Rngs`` for weights and dropout.
      loss: ``(module, batch)`` or ``(module, batch, key)`` to the loss, a scalar or one per
        example; the module is in training mode, so batch norm and dropout work. The key, of
        augmentation and the like, differs in every step.
      data: the data.
      evaluate: ``(module, batch)`` to a dict of metrics, in evaluation mode. By default the loss.
      **options: ``name``, ``about``, ``lanes`` and others of ``Task``.

    >>> import numpy as np
    >>> from flax import nnx
    >>> from adamw_jax.lab import split
    >>> x = np.ones((10, 3), np.float32)
    >>> task = from_nnx(
    ...     lambda rngs: nnx.Linear(3, 1, rngs=rngs),
    ...     lambda net, batch: (net(batch[0]) - batch[1]) ** 2,
    ...     split((x, x[:, :1])),
    ... )
    """
    from flax import nnx

    keyed = arity(loss, 3, required=True) == 3
    structure = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)[0]

    def init(key: jax.Array) -> Any:
        return nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)[1:]

    def train(params: Any, rest: Any, batch: Any, key: jax.Array) -> Any:
        module = nnx.merge(structure, params, rest, copy=True)
        module.train()
        value = loss(module, batch, *((key,) if keyed else ()))
        return value, nnx.split(module, nnx.Param, ...)[2]

    def measure(params: Any, rest: Any, batch: Any) -> dict[str, Any]:
        module = nnx.merge(structure, params, rest, copy=True)
        module.eval()
        if evaluate:
            return evaluate(module, batch)
        return {"loss": loss(module, batch, *((jax.random.key(0),) if keyed else ()))}

    return Task(init, train, data, measure, stateful=True, **options)


def from_linen(
    module: Any,
    loss: Callable[[Any, Any], Any],
    data: Data,
    evaluate: Callable[[Any, Any], dict[str, Any]] | None = None,
    *,
    inputs: Callable[[Any], Any] = lambda batch: batch[0],
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
    **options: Any,
) -> Task:
    """Return the task of training a Flax Linen module.

    Args:
      module: the module.
      loss: ``(outputs, batch)`` to the loss, a scalar or one per example.
      data: the data.
      evaluate: ``(outputs, batch)`` to a dict of metrics. By default the loss.
      inputs: ``batch`` to the argument of the module. By default the first part of the batch.
      train: keyword arguments of the module in training, such as ``{"train": True}``.
      test: keyword arguments in evaluation, such as ``{"train": False}``.
      rngs: names of the random generators that the module uses in training.
      **options: ``name``, ``about``, ``lanes`` and others of ``Task``.

    >>> import numpy as np
    >>> from flax import linen
    >>> from adamw_jax.lab import split
    >>> x = np.ones((10, 3), np.float32)
    >>> task = from_linen(
    ...     linen.Dense(1), lambda outputs, batch: (outputs - batch[1]) ** 2, split((x, x[:, :1]))
    ... )
    """
    in_training, in_test = dict(train or {}), dict(test or {})
    sample = jax.tree.map(lambda a: a[:1], data.validation)

    def init(key: jax.Array) -> Any:
        keys = dict(zip(("params", *rngs), jax.random.split(key, 1 + len(rngs)), strict=True))
        state = dict(module.init(keys, inputs(sample), **in_test))
        return state.pop("params"), state

    def step(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        keys = dict(zip(rngs, jax.random.split(key, len(rngs)), strict=True)) if rngs else None
        outputs, new = module.apply(
            {"params": params, **state},
            inputs(batch),
            rngs=keys,
            mutable=list(state),
            **in_training,
        )
        return loss(outputs, batch), {**state, **new}

    def measure(params: Any, state: Any, batch: Any) -> dict[str, Any]:
        outputs = module.apply({"params": params, **state}, inputs(batch), **in_test)
        return evaluate(outputs, batch) if evaluate else {"loss": loss(outputs, batch)}

    return Task(init, step, data, measure, stateful=True, **options)


def from_equinox(
    make: Callable[[jax.Array], Any],
    loss: Callable[..., Any],
    data: Data,
    evaluate: Callable[[Any, Any], dict[str, Any]] | None = None,
    **options: Any,
) -> Task:
    """Return the task of training an Equinox module.

    The parameters are its arrays of floating point. Other arrays stay as they are made.

    Args:
      make: ``key -> module``.
      loss: ``(module, batch, key)`` to the loss, a scalar or one per example. The key is for
        dropout.
      data: the data.
      evaluate: ``(module, batch)`` to a dict of metrics, in inference mode
        (``equinox.nn.inference_mode``). By default the loss, with a fixed key.
      **options: ``name``, ``about``, ``lanes`` and others of ``Task``.

    >>> import equinox, numpy as np
    >>> from adamw_jax.lab import split
    >>> x = np.ones((10, 3), np.float32)
    >>> task = from_equinox(
    ...     lambda key: equinox.nn.Linear(3, 1, key=key),
    ...     lambda net, batch, key: (jax.vmap(net)(batch[0]) - batch[1]) ** 2,
    ...     split((x, x[:, :1])),
    ... )
    """
    import equinox as eqx

    def parts(module: Any) -> tuple[Any, Any, Any]:
        params, rest = eqx.partition(module, _is_float)
        return params, *eqx.partition(rest, _is_array)

    structure = parts(eqx.filter_eval_shape(make, jax.random.key(0)))[2]

    def init(key: jax.Array) -> Any:
        return parts(make(key))[:2]

    def train(params: Any, rest: Any, batch: Any, key: jax.Array) -> Any:
        return loss(eqx.combine(params, rest, structure), batch, key), rest

    def measure(params: Any, rest: Any, batch: Any) -> dict[str, Any]:
        module = eqx.nn.inference_mode(eqx.combine(params, rest, structure))
        return (
            evaluate(module, batch)
            if evaluate
            else {"loss": loss(module, batch, jax.random.key(0))}
        )

    return Task(init, train, data, measure, stateful=True, **options)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_float(leaf: Any) -> bool:
    return _is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
