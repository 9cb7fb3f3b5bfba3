"""Find scales of the initial weights with which the first step of training lowers the loss most.

    min over scales of  L(S~; theta - eta A[g])   subject to  n(g) <= gamma,
    theta = {scale_m W_m},    g = grad L(S; theta)

eta A[g] is the first step of the optimizer that will train, SGD or Adam. While the norm n(g)
exceeds gamma, a step on the scales lowers the norm (two backward passes). Else it lowers the loss
on S~ after the first step, divided by eta. Adam updates the scales. Zhu, Ni, Xu, Kong, Huang &
Goldstein, NeurIPS 2021, arXiv 2102.08098.

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
    """State of a search.

    Attributes:
      scales: one per block, shape (blocks,), float32 or wider.
      moments: moments of the Adam that updates the scales.
    """

    scales: jax.Array
    moments: ScaleMoments


class GradInitRecord(NamedTuple):
    """Measurements of one step, at the scales before it.

    Attributes:
      constrained: whether the step lowered the norm of the gradient, because it exceeded gamma.
      gradient_norm: n(g) on S, the Euclidean norm or the sum of magnitudes.
      loss: loss on S.
      lowered: what the step lowered: the norm, or the loss on S~ after the inner step A[g].
      slope: derivatives of ``lowered`` with respect to the scales before clipping, for a loss
        divided by eta, shape (blocks,).
      scales: scales after the step, shape (blocks,).

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2)
      >>> params = {"kernel": 5 * jnp.ones((3, 2))}
      >>> batches = [(jnp.ones((4, 3)), jnp.ones((4, 3)))] * 3
      >>> scaled, about = aj.gradinit(
      ...     params, loss_fn, batches, num_steps=3, eta=0.1, gamma=1.0, scale_lr=0.1
      ... )
      >>> about.history.loss.shape, about.history.scales.shape
      ((3,), (3, 1))
    """

    constrained: jax.Array
    gradient_norm: jax.Array
    loss: jax.Array
    lowered: jax.Array
    slope: jax.Array
    scales: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class GradInit:
    """A search with its settings; ``gradinit`` runs one with ``step``, a pure function.

    Settings in the authors' code: for vision SGD with eta 0.1, gamma 1, scale_lr 1e-3 (ResNet with
    batch norm), 1e-1 (VGG with batch norm) or 1e-2 (VGG without); for translation Adam with eta
    1e-3, gamma 1000, scale_lr 2.5e-3, betas (0.9, 0.98), no clipping, separate second moments.

    Attributes:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch.
      eta: learning rate of the target optimizer, > 0.
      gamma: bound on the norm of the gradient, >= 0; infinity for no bound.
      scale_lr: learning rate of the scales, >= 0.
      algorithm: the target: ``"sgd"`` (Euclidean norm) or ``"adam"`` (sum of magnitudes).
      normalize: let SGD step along g / |g|, as the authors do; False along g.
      min_scale: lower bound of the scales, in [0, 1].
      min_bias_scale: lower bound for biases, in [0, 1]. A scale that reaches 0 stays there.
      max_scale: upper bound, >= 1; None for no bound.
      grad_clip: largest magnitude of a slope, > 0; None for no bound.
      betas: decay rates of the Adam that updates the scales, each in [0, 1).
      shared_second_moment: let both kinds of step share one (vision); False keeps two
        (translation).
      block_fn: ``(name, leaf) -> key``. Leaves with the same key share a scale. Leaves with the key
        None are constants: not scaled, not in the norm, not changed by the inner step. None gives
        every floating-point leaf its own scale.
      is_bias: which leaves are biases: a tree of bools, a function of the parameters, or a pattern
        for names of leaves; None for leaves named ``bias`` or ``b``.
      differentiate_inner: differentiate the loss through A[g], as in the formula; False takes A[g]
        as a constant, as the authors' code does. For Adam, whose step is a sign, both are equal.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2)
      >>> params, batch = {"kernel": 5 * jnp.ones((3, 2))}, jnp.ones((4, 3))
      >>> search = aj.initialization.GradInit(loss_fn, eta=0.1, gamma=1.0, scale_lr=0.1)
      >>> state = search.init(params)
      >>> state, record = search.step(params, state, (batch, batch))
      >>> bool(record.constrained)  # its gradient was too long, so the step shortened it
      True
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
        """Check the settings."""
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
        """Return the blocks; their ``names`` have the order of all arrays over blocks.

        Args:
          params: the initial parameters.
        """
        return Blocks.of(params, self.block_fn, self.is_bias)

    def init(self, params: Tree) -> GradInitState:
        """Return the state before the first step, with scales of 1.

        Args:
          params: the initial parameters.
        """
        count = len(self.blocks(params).names)
        scales = jnp.ones([count], numerics.default_float())
        return GradInitState(scales, ScaleMoments.zeros(count, self.shared_second_moment))

    def rescaled(self, params: Tree, state: GradInitState) -> Tree:
        """Return the initial parameters times their scales, in their own dtypes.

        Args:
          params: the initial parameters.
          state: from ``init`` or ``step``.
        """
        return self.blocks(params).rescaled(state.scales)

    def step(
        self, params: Tree, state: GradInitState, pair: tuple[Any, Any]
    ) -> tuple[GradInitState, GradInitRecord]:
        """Make one step on the scales; pure, for ``jax.jit``, ``lax.scan`` and ``jax.vmap``.

        Args:
          params: the initial parameters, the same at every step.
          state: from ``init`` or the previous step.
          pair: the batches S and S~.

        Returns:
          The new state and the record of the step. The state stays as it was if the new one would
          not be finite (a slope is NaN, or its square overflows without ``grad_clip``).
        """
        blocks = self.blocks(params)
        if state.scales.shape != (len(blocks.names),):
            raise ValueError(
                f"the state has scales of shape {state.scales.shape}, the parameters "
                f"{len(blocks.names)} blocks: call init again after changing the parameters."
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
        """Return the first five fields of the ``GradInitRecord``."""
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

        constrained = ~(norm <= self.gamma)  # also if the norm is NaN
        return constrained, norm, loss, *lax.cond(constrained, constraint, objective)

    def _bounded(self, blocks: Blocks, scales: jax.Array) -> jax.Array:
        low = [self.min_bias_scale if bias else self.min_scale for bias in blocks.is_bias]
        high = math.inf if self.max_scale is None else self.max_scale
        return jnp.clip(scales, jnp.asarray(low, scales.dtype), jnp.asarray(high, scales.dtype))


def _scalar(loss: Any) -> jax.Array:
    """Return the loss as a scalar of the default float dtype."""
    real = isinstance(loss, jax.Array) and jnp.issubdtype(loss.dtype, jnp.floating)
    if not real or loss.shape != ():
        raise TypeError(
            "loss_fn must return a real scalar, the mean over the batch, without auxiliary output; "
            f"got {jax.tree.map(jax.typeof, loss)}."
        )
    return numerics.scalar(loss)
