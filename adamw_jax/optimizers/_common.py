"""Define the keywords that optimizers share, and build the end of a recipe.

[l2] -> direction -> [decay] -> learning rate -> [decay]
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, cast

from adamw_jax._core.checks import one_of
from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, storage_dtype
from adamw_jax._core.masks import Mask
from adamw_jax._core.options import Option, filled, options_of
from adamw_jax._core.stage import Stage
from adamw_jax.direction import ParameterRules, decoupled_decay
from adamw_jax.direction._decay import FORMS, OF_PEAK, READS_RATE, l2_decay
from adamw_jax.storage._stages import store
from adamw_jax.update import scale_by_learning_rate
from adamw_jax.update._learning_rate import descend, scale_gradient


class Decay(TypedDict, total=False):
    """Decoupled decay."""

    weight_decay: Annotated[
        ScalarOrSchedule | None,
        Option(None, "decoupled decay coefficient, a number or schedule; None for no decay."),
    ]
    mask: Annotated[
        Mask,
        Option(
            None,
            "which leaves decay, by weight_decay and l2: tree of bools, function of the "
            "parameters, or name pattern.",
        ),
    ]
    decay: Annotated[
        str,
        Option(
            "learning_rate",
            '``"learning_rate"`` (lr_t wd theta), ``"schedule"`` (lr_t/lr_0 wd theta, the AdamW '
            'paper), ``"corrected"`` (lr_t^2/lr_0 wd theta, AdamC), ``"fixed"`` (wd theta) or '
            '``"proximal"`` (division by 1 + lr_t wd).',
        ),
    ]


class Ending(TypedDict, total=False):
    """Further keywords of ``finish``."""

    base_learning_rate: Annotated[
        float | None, Option(None, 'lr_0 of ``decay="schedule"`` and ``"corrected"``.')
    ]
    l2: Annotated[
        ScalarOrSchedule | None,
        Option(None, "coefficient of L2 regularisation in the gradient; None for no L2."),
    ]
    rules: Annotated[
        ParameterRules | None,
        Option(None, "per-parameter learning rates, decay and freezing, from ``parameter_rules``."),
    ]


class Encoding(TypedDict, total=False):
    """Encoded storage of the accumulators."""

    storage: Annotated[
        Any,
        Option(
            None,
            '``"roots"``, ``"8bit"``, ``"4bit"``, ``"float8"`` or ``"bfloat16"`` for a smaller '
            "state, a format such as ``storage.eight_bit(block_size=128)``, or a mapping such as "
            '``{"second": "8bit"}``; None for arrays of ``state_dtype``. It applies to arrays of '
            "4096 elements or more; ``quantize_state`` has more options.",
        ),
    ]


class Storage(Encoding, total=False):
    """Storage of the accumulators."""

    state_dtype: Annotated[
        Any,
        Option(
            None,
            "storage dtype of the accumulators; None for float32 (float64 under x64).",
            in_direction=True,
        ),
    ]


class Moments(TypedDict, total=False):
    """Changes to the moments of Adam and related optimizers."""

    amsgrad: Annotated[
        bool,
        Option(False, "divide by the largest second moment so far (PyTorch's form).", True),
    ]
    rectify: Annotated[
        bool,
        Option(
            False,
            "rectify the variance as RAdam does, and make no step while the average is too short "
            '(for a solver that stops on small updates use ``radam(below="momentum")``).',
            in_direction=True,
        ),
    ]
    eps_hat: Annotated[
        bool, Option(False, "add eps to the uncorrected root (Keras, fairseq).", True)
    ]
    bias_correction: Annotated[
        str,
        Option(
            "exact",
            '``"exact"``, or ``"current"`` for 1 - b_t^t under a scheduled b (PyTorch).',
            in_direction=True,
        ),
    ]


class Unstored(Decay, Ending, total=False):
    """Keywords of an optimizer with hardly any state."""


class AroundDirection(Unstored, Encoding, total=False):
    """Keywords around a direction that is made already."""


class Plain(Unstored, Storage, total=False):
    """Keywords of an optimizer without a second moment, or with ``Moments`` of its own."""


class Stored(Ending, Storage, total=False):
    """Keywords of an optimizer without a second moment, with ``Decay`` of its own."""


class OwnDecay(Moments, Stored, total=False):
    """Keywords of an optimizer with ``Decay`` of its own."""


class Common(Plain, Moments, total=False):
    """Every common keyword."""


COMMON = options_of(Common)


RENAMED = {
    "lr": "learning_rate",
    "betas": "b1",
    "beta_1": "b1",
    "beta_2": "b2",
    "beta1": "b1",
    "b1": "interpolation",
    "beta2": "b2",
    "wd": "weight_decay",
    "weight_decay_mask": "mask",
    "weight_decay_rate": "weight_decay",
    "momentum": "b1",
    "dtype_momentum": "mu_dtype",
    "eps_root": "",
    "nadamw": "adamw",
}
"""Names that other libraries use, for the hint in an error; empty for no hint."""


class CommonOptions(types.SimpleNamespace):
    """The values of all common keywords in one call, by name."""

    def __init__(self, given: Mapping[str, Any] | None = None, **own: Any) -> None:
        """Take the common keywords, and those in the optimizer's own signature."""
        super().__init__(**filled(Common, given or {}, **own))
        self.state_dtype = storage_dtype("state_dtype", self.state_dtype)
        if self.rules is not None and not isinstance(self.rules, ParameterRules):
            raise TypeError(f"rules must be parameter_rules({{...}}), got {self.rules!r}.")

    @property
    def frozen(self) -> Mask:
        """The mask of the frozen leaves, or None."""
        return self.rules.frozen if self.rules is not None and self.rules.freezes else None


def check_decay(made: Composed, rules: ParameterRules | None) -> None:
    """Raise if a rule has a coefficient of decay, but the recipe has no decay."""
    given = () if rules is None else rules.all
    own = [rule for rule in given if rule.weight_decay not in (None, 0)]
    names = [name.rpartition(".")[2] for name in made.hyperparams]
    if own and not {"weight_decay", "l2"} & {*names}:
        raise ValueError(
            f"{own[0]} has a weight_decay, but the optimizer does not decay: give it weight_decay= "
            "or l2=, which may be 0.0."
        )


def plain(learning_rate: LearningRate) -> ScalarOrSchedule:
    """Assert that ``register`` has replaced an object of several schedules."""
    assert not hasattr(learning_rate, "learning_rate")
    return cast(ScalarOrSchedule, learning_rate)


def finish(
    options: CommonOptions,
    learning_rate: LearningRate,
    *direction: Composed | Stage | None,
    schedule_inside: bool = False,
    step: Stage | None = None,
) -> Composed:
    """Build a recipe from a direction, with L2 before it, decay and learning rate after it.

    With ``schedule_inside`` the learning rate multiplies the gradient instead of the direction.
    ``step`` is used instead of ``scale_by_learning_rate``.
    """
    decay, mask, l2 = options.decay, options.mask, options.l2
    rate = plain(learning_rate)
    one_of("decay", decay, FORMS)
    if mask is not None and options.weight_decay is None and l2 is None:
        raise ValueError(
            "mask selects the leaves that decay, but neither weight_decay nor l2 is given: give "
            "one of them, or leave mask out."
        )
    rules, decayed = options.rules, None
    if options.weight_decay is not None:
        if schedule_inside and decay == "learning_rate":
            decay = "inside"
        decayed = decoupled_decay(
            options.weight_decay,
            mask,
            decay,
            learning_rate=rate if decay in READS_RATE else None,
            base_learning_rate=options.base_learning_rate if decay in OF_PEAK else None,
            rules=rules,
        )
    return compose(
        None if l2 is None else l2_decay(l2, mask, rules=rules),
        scale_gradient(rate, rules) if schedule_inside else None,
        store(compose(*direction), options.storage),
        decayed if decay == "learning_rate" else None,
        step or (descend() if schedule_inside else scale_by_learning_rate(rate, rules=rules)),
        None if decay == "learning_rate" else decayed,
        frozen=options.frozen,
    )
