"""Build Adafactor, adaptive steps with a very small state.

    V_ij = R_i C_j / mean(R)                               R, C: means of g^2 by row and column
    u = g / sqrt(V);  u <- u / max(1, RMS(u) / d)
    theta <- theta - max(min_scale, RMS(theta)) min(1e-2, 1 / sqrt(t)) u

Shazeer & Stern, ICML 2018, arXiv 1804.04235.

>>> [spec.name for spec in adafactor().specs][1:]
['precondition', 'clip_by_rms', 'scale_by_parameter_rms', 'scale_by_relative_step']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.checks import one_of, switch
from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, storage_dtype
from adamw_jax._core.masks import Mask
from adamw_jax._core.stage import Stage
from adamw_jax.direction import clip_by_rms, decoupled_decay, scale_by_parameter_rms
from adamw_jax.direction._decay import FORMS, OF_PEAK, READS_RATE
from adamw_jax.moments import estimate_moments, factored_squares, no_moment, precondition
from adamw_jax.optimizers._common import CommonOptions, Stored, finish
from adamw_jax.optimizers._registry import register
from adamw_jax.storage._stages import store
from adamw_jax.update import _effective_decay, average_updates, scale_by_relative_step
from adamw_jax.update._relative_step import LARGEST, slow_start

DECAYS = (*FORMS, "raw_learning_rate")


@register(
    title="Adafactor",
    equation="V = R C^T / mean(R);  u = g / sqrt(V) / max(1, RMS(g / sqrt(V)) / clipping_threshold)"
    ";  theta <- theta - max(min_scale, RMS(theta)) min(1e-2, 1 / sqrt(t)) u",
    citation="Shazeer & Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, "
    "ICML 2018",
    arxiv="1804.04235",
    scope="leaf",
    state_values=1,
    differs="with a learning rate it equals optax.adafactor, with two exceptions. Leaves of three "
    'or more axes are factored over the last two, as in the authors\' code (optax: axes="largest").'
    ' Decay is multiplied by the effective learning rate (optax and T5X: decay="fixed"). '
    'PyTorch\'s form: relative_step=True, eps=None, eps_form="clamped", '
    'decay="raw_learning_rate", min_dim_size_to_factor=1; Keras\': relative_step=True, '
    "min_dim_size_to_factor=1.",
    twin="adafactor",
    twin_options={"axes": "largest", "decay": "fixed"},
    lacks="its second moment has no bias, and amsgrad would need a second moment of full size",
    after_direction=("b1", "mu_dtype", "relative_step", "warmup_init"),
    memory="n + m for a matrix n x m, 1 per parameter if not factored",
)
def adafactor(
    learning_rate: LearningRate | None = None,
    decay_rate: ScalarOrSchedule = 0.8,
    eps: ScalarOrSchedule | None = 1e-30,
    min_scale: ScalarOrSchedule = 1e-3,
    clipping_threshold: ScalarOrSchedule | None = 1.0,
    b1: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    *,
    relative_step: bool | None = None,
    warmup_init: bool = False,
    multiply_by_parameter_scale: bool = True,
    max_scale: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    axes: Any = "last",
    eps_form: str = "added",
    factored: bool = True,
    decay_offset: int = 0,
    max_b2: ScalarOrSchedule | None = None,
    b2: ScalarOrSchedule | None = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay: str = "learning_rate",
    **common: Unpack[Stored],
) -> Composed:
    """Adafactor: Adam's scaling from the row and column means of the squared gradients.

    Args:
      learning_rate: None for the relative step ``min(1e-2, 1 / sqrt(t))`` (paper), or a number,
        schedule, or object of several schedules (``one_cycle(...)``).
      decay_rate: exponent in (0, 1] of the second moment's decay ``1 - t^-decay_rate``; 0.8.
      eps: added to the squared gradient; 1e-30 (paper's eps1).
      min_scale: lower bound of the scale of a leaf; 1e-3 (paper's eps2).
      clipping_threshold: d >= 1, the largest root mean square of a leaf's direction; 1. None for no
        clipping.
      b1: decay rate of a moving average of the updates, in [0, 1): momentum after the learning
        rate, without bias correction (as in the authors' code). None, the default, for no momentum,
        even if the learning rate has a schedule of it (give ``b1=cycle.momentum``).
      mu_dtype: storage dtype of that average; None for ``state_dtype``.
      relative_step: True makes the learning rate the upper bound of the relative step,
        ``min(learning_rate, 1 / sqrt(t))`` (PyTorch, Keras). None, only without a learning rate.
      warmup_init: start the relative step slowly, ``min(1e-6 t, 1 / sqrt(t))``.
      multiply_by_parameter_scale: multiply the step of each leaf by ``max(min_scale, RMS(theta))``;
        False for steps of absolute size (tensor2tensor multiplies these by 0.05).
      max_scale: upper bound of that factor, > 0 (T5X); None for no bound.
      min_dim_size_to_factor: least size of both factored axes; 128 as in optax and T5X (paper: 1).
        Smaller leaves are not factored.
      axes: factor over the ``"last"`` two axes or the two ``"largest"``, or a table such as
        ``{"*/query/kernel": (0, (1, 2))}``; see ``factored_squares``.
      eps_form: ``"added"``, or ``"clamped"`` for PyTorch's lower bounds; see ``factored_squares``.
      factored: False factors no leaf.
      decay_offset: number of steps after which t of ``decay_rate`` starts to count.
      max_b2: upper bound of the decay rate of the second moment, such as 0.999; None for no bound.
      b2: Adam's decay rate, used instead of ``decay_rate``, without bias, as in tensor2tensor:
        ``b2 (1 - b2^(t-1)) / (1 - b2^t)``.
      decay: factor on ``weight_decay theta``: ``"learning_rate"``, the effective learning rate,
        with relative step and parameter scale; ``"raw_learning_rate"``, the given learning rate
        (PyTorch); ``"fixed"``, 1 (optax, T5X); ``"schedule"``, lr_t/lr_0; ``"corrected"``,
        lr_t^2/lr_0. ``"proximal"`` divides by 1 plus weight_decay times the effective learning
        rate. The decay never enters the momentum.

    Returns:
      The transformation. Its state has n + m values for a factored n x m matrix, one per parameter
      for other leaves, and with ``b1`` one more per parameter.
    """
    mu_dtype = storage_dtype("mu_dtype", mu_dtype)
    if mu_dtype is not None and b1 is None:
        raise ValueError(f"mu_dtype={mu_dtype} needs a momentum: give b1, or leave mu_dtype out.")
    if max_scale is not None and not multiply_by_parameter_scale:
        raise ValueError(
            f"max_scale={max_scale!r} bounds the parameter scale, which "
            "multiply_by_parameter_scale=False switches off: give only one of the two."
        )
    o = CommonOptions(common, mask=mask)
    rate, relative = _rate(learning_rate, relative_step, warmup_init)
    decayed = _decay(decay, weight_decay, rate, o, relative)
    if decayed is not None and o.l2 is None:
        o.mask = None
    squares = factored_squares(
        decay_rate,
        eps,
        min_dim_size_to_factor=min_dim_size_to_factor,
        axes=axes,
        eps_form=eps_form,
        factored=factored,
        decay_offset=decay_offset,
        max_b2=max_b2,
        b2=b2,
        dtype=o.state_dtype,
    )
    averaged = None if b1 is None else average_updates(b1, dtype=mu_dtype or o.state_dtype)
    return compose(
        finish(
            o,
            rate,
            estimate_moments(no_moment(), squares),
            precondition(None),
            None if clipping_threshold is None else clip_by_rms(clipping_threshold),
            scale_by_parameter_rms(min_scale, max_scale) if multiply_by_parameter_scale else None,
            step=scale_by_relative_step(rate, o.rules) if relative else None,
        ),
        None if averaged is None else store(averaged, o.storage),
        decayed,
    )


def _rate(learning_rate: Any, relative_step: bool | None, warmup_init: bool) -> tuple[Any, bool]:
    """Return the learning rate, and whether it is the upper bound of a relative step."""
    if relative_step is not None:
        switch("relative_step", relative_step)
    if learning_rate is not None:
        if warmup_init:
            raise ValueError(
                "warmup_init=True is for the relative step of learning_rate=None: leave the "
                "learning rate out, or give a schedule that warms up."
            )
        return learning_rate, bool(relative_step)
    if relative_step is False:
        raise ValueError(
            "relative_step=False needs a learning_rate: give one, or leave relative_step out."
        )
    return slow_start if warmup_init else LARGEST, True


def _decay(
    form: str, weight_decay: Any, learning_rate: Any, options: CommonOptions, relative: bool
) -> Stage | None:
    mask, rules = options.mask, options.rules
    one_of("decay", form, DECAYS)
    if weight_decay is None:
        return None
    if form in _effective_decay.FORMS:
        return _effective_decay.effective_decay(
            weight_decay, learning_rate, mask, form, relative=relative, rules=rules
        )
    if form in OF_PEAK and relative:
        raise ValueError(
            f'decay="{form}" needs a learning-rate schedule, which the relative step is not: '
            'give decay="learning_rate" or decay="fixed".'
        )
    return decoupled_decay(
        weight_decay,
        mask,
        form,
        learning_rate=learning_rate if form in READS_RATE else None,
        base_learning_rate=options.base_learning_rate if form in OF_PEAK else None,
        rules=rules,
    )
