"""GradInit: scales of the initial weights for which the first step of training does most.

    min over scales of  L(S~; theta - eta A[g])   subject to  n(g) <= gamma,
    theta = {scale_m W_m},    g = grad L(S; theta)

While the norm n(g) exceeds gamma a step lowers the norm (two backward passes); else it lowers the
loss on S~ after one step of the optimizer that will train, SGD or Adam, divided by eta. Adam moves
the scales. Zhu, Ni, Xu, Kong, Huang & Goldstein, NeurIPS 2021, arXiv 2102.08098.

>>> import jax.numpy as jnp
>>> def loss_fn(params, batch):
...     return jnp.mean((params["w"] * batch) ** 2)
>>> search = GradInit(loss_fn, eta=0.1, gamma=1.0, scale_lr=0.1)
>>> params, batch = {"w": jnp.full(3, 5.0)}, jnp.ones(3)
>>> state, record = jax.jit(search.step)(params, search.init(params), (batch, batch))
>>> print(record.constrained, search.rescaled(params, state)["w"])
True [4.5 4.5 4.5]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number, one_of, switch
from adamw_jax.initialization._scale_groups import BlockFn, Blocks
from adamw_jax.initialization._scale_optimizer import ScaleMoments, direction
from adamw_jax.initialization._target import ALGORITHMS, first_step, gradient_norm

Tree = Any
LossFn = Callable[[Tree, Any], jax.Array]


class GradInitState(NamedTuple):
    """What a search carries.

    Attributes:
      scales: shape (blocks,), float32 at least.
      moments: those of the scales' Adam.
    """

    scales: jax.Array
    moments: ScaleMoments


class GradInitRecord(NamedTuple):
    """What one step saw, at the scales before it.

    Attributes:
      constrained: whether it lowered the gradient's norm, because that exceeded gamma, rather than
        the loss.
      gradient_norm: n(g) on S, the Euclidean norm or the sum of magnitudes.
      loss: on S.
      lowered: what the step lowered: the norm, or the loss on S~ after the inner step.
      slope: derivatives in the scales of ``lowered``, of a loss divided by eta; not yet clipped,
        shape (blocks,).
      scales: after the step, shape (blocks,).
    """

    constrained: jax.Array
    gradient_norm: jax.Array
    loss: jax.Array
    lowered: jax.Array
    slope: jax.Array
    scales: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class GradInit:
    """A search with its settings; ``gradinit`` runs one, ``step`` is the pure function inside.

    The authors' settings (their code): for vision SGD with eta 0.1, gamma 1, scale_lr 1e-3 (ResNet
    with batch norm) to 1e-1 (VGG with it), 1e-2 for VGG without; for translation Adam with eta
    1e-3, gamma 1000, scale_lr 2.5e-3, betas (0.9, 0.98), no clipping, second moments apart.

    Attributes:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch.
      eta: learning rate of the target optimizer, > 0.
      gamma: bound on the gradient's norm, >= 0, in its units; infinity for none.
      scale_lr: learning rate of the scales, >= 0.
      algorithm: the target: ``"sgd"`` (Euclidean norm) or ``"adam"`` (sum of magnitudes).
      normalize: SGD steps along g / |g|, the authors' choice; False along g.
      min_scale: lower bound of the scales, in [0, 1].
      min_bias_scale: that of biases, in [0, 1]. A scale that reaches 0 stays there.
      max_scale: upper bound, >= 1; None for none.
      grad_clip: largest magnitude of a slope, > 0; None for no bound.
      betas: decay rates of the scales' Adam, each in [0, 1).
      shared_second_moment: both kinds of step share one (vision); False keeps two (translation).
      block_fn: ``(name, leaf) -> key``; leaves of one key share a scale, those of the key None are
        constants of the search: unscaled, no part of the norm, not moved by the inner step. None
        gives every floating-point leaf a scale.
      is_bias: which leaves are biases: a tree of bools, a function of the parameters, or a pattern
        on leaf names; None for those called ``bias`` or ``b``.
      differentiate_inner: whether the derivative of the loss goes through A[g], as the formula
        says; False takes the inner step as a constant, as the authors' code does. The same for
        Adam, whose step is a sign.

    Raises:
      ValueError: a number is out of its range or a name unknown.
      TypeError: ``loss_fn`` is not callable.
    """

    loss_fn: LossFn
    _: dataclasses.KW_ONLY
    eta: float
    gamma: float
    scale_lr: float
    algorithm: str = "sgd"
    normalize: bool = True
    min_scale: float = 0.01
    min_bias_scale: float = 0.0
    max_scale: float | None = None
    grad_clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    shared_second_moment: bool = True
    block_fn: BlockFn | None = None
    is_bias: masks.Mask = None
    differentiate_inner: bool = False

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not callable(self.loss_fn):
            raise TypeError(
                f"loss_fn must be a function of params and batch, got {self.loss_fn!r}."
            )
        one_of("algorithm", self.algorithm, ALGORITHMS)
        for name in ("normalize", "shared_second_moment", "differentiate_inner"):
            switch(name, getattr(self, name))
        number("eta", self.eta, above=0)
        if self.gamma != math.inf:
            number("gamma", self.gamma, least=0)
        number("scale_lr", self.scale_lr, least=0)
        number("min_scale", self.min_scale, least=0, most=1)
        number("min_bias_scale", self.min_bias_scale, least=0, most=1)
        if self.max_scale is not None:
            number("max_scale", self.max_scale, least=1)
        if self.grad_clip is not None:
            number("grad_clip", self.grad_clip, above=0)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {self.betas!r}.")
        for i, beta in enumerate(self.betas):
            number(f"betas[{i}]", beta, least=0, below=1)

    def blocks(self, params: Tree) -> Blocks:
        """How the parameters are grouped.

        Args:
          params: the initial parameters.

        Returns:
          The blocks, whose ``names`` have the order of all arrays over blocks.

        Raises:
          ValueError: no leaf has a scale, or ``is_bias`` does not fit.
          TypeError: ``block_fn`` gives a key that is not hashable.
        """
        return Blocks.of(params, self.block_fn, self.is_bias)

    def init(self, params: Tree) -> GradInitState:
        """The state before the first step, with scales of 1.

        Args:
          params: the initial parameters.

        Raises:
          ValueError, TypeError: as ``blocks``.
        """
        count = len(self.blocks(params).names)
        scales = jnp.ones([count], numerics.default_float())
        return GradInitState(scales, ScaleMoments.zeros(count, self.shared_second_moment))

    def rescaled(self, params: Tree, state: GradInitState) -> Tree:
        """The initial parameters times their scales.

        Args:
          params: the initial parameters.
          state: from ``init`` or ``step``.

        Returns:
          A tree with the structure, shapes and dtypes of ``params``.
        """
        return self.blocks(params).rescaled(state.scales)

    def step(
        self, params: Tree, state: GradInitState, pair: tuple[Any, Any]
    ) -> tuple[GradInitState, GradInitRecord]:
        """One step on the scales; pure, for ``jax.jit``, ``lax.scan`` and ``jax.vmap``.

        Args:
          params: the initial parameters, the same at every step.
          state: from ``init`` or the step before.
          pair: the batches S and S~.

        Returns:
          The new state, or the old one where that would not be finite (a slope is NaN, or without
          ``grad_clip`` too large for its square), and what the step saw.

        Raises:
          ValueError: the state is of parameters with another number of blocks.
          TypeError: the loss is no real scalar.
        """
        blocks = self.blocks(params)
        if state.scales.shape != (len(blocks.names),):
            raise ValueError(
                f"the state has scales of shape {state.scales.shape}, the parameters "
                f"{len(blocks.names)} blocks: call init again for changed parameters."
            )
        constrained, norm, loss, lowered, slope = self._slope(blocks, state.scales, pair)
        kind = constrained.astype(jnp.int32)
        clip = math.inf if self.grad_clip is None else self.grad_clip
        along, moments = direction(slope, state.moments, kind, betas=self.betas, clip=clip)
        scales = self._bounded(blocks, state.scales - self.scale_lr * along)
        moved = GradInitState(jnp.where(state.scales == 0, state.scales, scales), moments)
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(moved)]
        sound = jnp.all(jnp.stack(finite))
        after = jax.tree.map(lambda new, old: lax.select(sound, new, old), moved, state)
        return after, GradInitRecord(constrained, norm, loss, lowered, slope, after.scales)

    def _slope(self, blocks: Blocks, scales: jax.Array, pair: tuple[Any, Any]) -> tuple[Any, ...]:
        """Whether the norm is too large, the norm and the loss, what is lowered, its slope."""
        batch, other = pair

        def loss_of(scaled: list[jax.Array], batch: Any) -> jax.Array:
            return _scalar(self.loss_fn(blocks.whole(scaled), batch))

        def norm_of(scales: jax.Array) -> tuple[jax.Array, Any]:
            loss, gradient = jax.value_and_grad(loss_of)(blocks.scaled(scales), batch)
            return gradient_norm(gradient, self.algorithm), (loss, gradient)

        norm, backward, (loss, gradient) = jax.vjp(norm_of, scales, has_aux=True)

        def loss_after(scales: jax.Array) -> jax.Array:
            inner = norm_of(scales)[1][1] if self.differentiate_inner else gradient
            step = first_step(inner, self.algorithm, self.normalize)
            eta = numerics.scalar(self.eta)
            scaled = blocks.scaled(scales)
            moved = [w - numerics.scaled(eta, a) for w, a in zip(scaled, step, strict=True)]
            return loss_of(moved, other)

        def constraint() -> tuple[jax.Array, jax.Array]:
            return norm, backward(jnp.ones_like(norm))[0]

        def objective() -> tuple[jax.Array, jax.Array]:
            value, slope = jax.value_and_grad(loss_after)(scales)
            return value, slope / self.eta

        constrained = ~(norm <= self.gamma)  # a norm that is NaN does not satisfy the constraint
        return constrained, norm, loss, *lax.cond(constrained, constraint, objective)

    def _bounded(self, blocks: Blocks, scales: jax.Array) -> jax.Array:
        low = [self.min_bias_scale if bias else self.min_scale for bias in blocks.is_bias]
        high = math.inf if self.max_scale is None else self.max_scale
        return jnp.clip(scales, jnp.asarray(low, scales.dtype), jnp.asarray(high, scales.dtype))


def _scalar(loss: Any) -> jax.Array:
    """The loss as a scalar of the default float dtype."""
    real = isinstance(loss, jax.Array) and jnp.issubdtype(loss.dtype, jnp.floating)
    if not real or loss.shape != ():
        raise TypeError(
            "loss_fn must return a real scalar, the mean over the batch, without auxiliary output; "
            f"got {jax.tree.map(jax.typeof, loss)}."
        )
    return numerics.scalar(loss)
