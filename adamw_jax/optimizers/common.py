"""What every optimizer of the catalogue shares: keywords, and the end of the recipe.

[l2] -> direction -> [decay] -> [rules] -> learning rate -> [decay]
"""

from __future__ import annotations

from typing import Any, TypedDict

import optax

from adamw_jax.checks import one_of, switch
from adamw_jax.compose import Composed, compose, store
from adamw_jax.decay import FORMS, decoupled_decay, l2_decay
from adamw_jax.hyperparameters import ScalarOrSchedule
from adamw_jax.learning_rate import descend, scale_by_learning_rate, scale_gradient
from adamw_jax.masks import Mask
from adamw_jax.moments.correction import CONVENTIONS
from adamw_jax.rules import ParameterRules, scale_by_rules
from adamw_jax.stage import Stage


class Common(TypedDict, total=False):
    """Keywords of every optimizer; see ``COMMON_DOC``."""

    weight_decay: ScalarOrSchedule | None
    mask: Mask
    decay: str
    base_learning_rate: float | None
    l2: ScalarOrSchedule | None
    amsgrad: bool
    rectify: bool
    eps_hat: bool
    bias_correction: str
    state_dtype: Any
    storage: Any
    rules: ParameterRules | None


COMMON: dict[str, Any] = {
    "weight_decay": None,
    "mask": None,
    "decay": "learning_rate",
    "base_learning_rate": None,
    "l2": None,
    "amsgrad": False,
    "rectify": False,
    "eps_hat": False,
    "bias_correction": "exact",
    "state_dtype": None,
    "storage": None,
    "rules": None,
}

RENAMED = {
    "lr": "learning_rate",
    "betas": "b1",
    "beta1": "b1",
    "beta2": "b2",
    "wd": "weight_decay",
    "weight_decay_mask": "mask",
    "weight_decay_rate": "weight_decay",
    "momentum": "b1",
    "dtype_momentum": "mu_dtype",
    "eps_root": "",
}
"""Names of the same thing elsewhere, for the hint in the error; empty for a thing of its own."""

COMMON_DOC: dict[str, str] = {
    "weight_decay": """\
  weight_decay: decoupled decay coefficient, a number or schedule; None for no decay.
""",
    "mask": """\
  mask: which leaves decay, by weight_decay and l2: tree of bools, function of the parameters, or
    name pattern.
""",
    "decay": """\
  decay: ``"learning_rate"`` (lr_t wd theta), ``"schedule"`` (lr_t/lr_0 wd theta, the AdamW paper),
    ``"fixed"`` (wd theta) or ``"proximal"`` (division by 1 + lr_t wd).
""",
    "base_learning_rate": """\
  base_learning_rate: lr_0 of ``decay="schedule"``.
""",
    "l2": """\
  l2: coefficient of L2 regularisation in the gradient; None for none.
""",
    "amsgrad": """\
  amsgrad: divide by the largest second moment so far (PyTorch's form).
""",
    "rectify": """\
  rectify: rectify the variance as RAdam does; no step while the average is too short, which a
    solver that stops on a small update takes for convergence (``radam(below="momentum")`` steps).
""",
    "eps_hat": """\
  eps_hat: add eps to the uncorrected root (Keras, fairseq).
""",
    "bias_correction": """\
  bias_correction: ``"exact"``, or ``"current"`` for 1 - b_t^t under a scheduled b (PyTorch).
""",
    "state_dtype": """\
  state_dtype: storage dtype of the accumulators; None for float32 (float64 under x64).
""",
    "storage": """\
  storage: ``"8bit"``, ``"4bit"``, ``"float8"`` or ``"bfloat16"`` for a smaller state, a format such
    as ``storage.eight_bit(block_size=128)``, or a mapping such as ``{"second": "8bit"}``; None for
    arrays as they are. For arrays of 4096 elements and more; ``quantize_state`` has more options.
""",
    "rules": """\
  rules: per-parameter multipliers and freezing, from ``parameter_rules``.
""",
}
"""What each common keyword is, for the docstrings."""

_SWITCHES = ("amsgrad", "rectify", "eps_hat", "nesterov")


def check_switches(given: dict[str, Any]) -> None:
    """Raises where an option that is on or off is neither, or a bias correction is unknown."""
    for name in _SWITCHES:
        if name in given:
            switch(name, given[name])
    if "bias_correction" in given:
        one_of("bias_correction", given["bias_correction"], CONVENTIONS)


def refuse(name: str, why: str, **given: Any) -> None:
    """Raises where an option is set that has no meaning for an optimizer."""
    if wrong := sorted(option for option, value in given.items() if value):
        raise ValueError(f"{name} {why}, so it takes none of {wrong}.")


def finish(
    direction: Composed,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay: str = "learning_rate",
    base_learning_rate: float | None = None,
    l2: ScalarOrSchedule | None = None,
    storage: Any = None,
    rules: ParameterRules | None = None,
    schedule_inside: bool = False,
    step: Stage | None = None,
) -> Composed:
    """The whole recipe around a direction: L2 before it, decay and learning rate after it.

    With ``schedule_inside`` the learning rate multiplies the gradient instead of the direction.
    ``step`` is the stage that turns direction into update, if it is not ``scale_by_learning_rate``.
    """
    one_of("decay", decay, FORMS)
    if mask is not None and weight_decay is None and l2 is None:
        raise ValueError(
            "mask says which leaves decay, but neither weight_decay nor l2 is given: give one of "
            "them, or leave mask out."
        )
    frozen = rules.frozen if isinstance(rules, ParameterRules) and rules.freezes else None
    rules = moving_rules(rules)
    decayed = None
    if weight_decay is not None:
        if schedule_inside and decay == "learning_rate":
            decay, base_learning_rate = "schedule", 1.0
        decayed = decoupled_decay(
            weight_decay,
            mask,
            decay,
            learning_rate=learning_rate if decay in ("schedule", "proximal") else None,
            base_learning_rate=base_learning_rate,
            rules=rules,
        )
    return compose(
        None if l2 is None else l2_decay(l2, mask, rules=rules),
        scale_gradient(learning_rate) if schedule_inside else None,
        store(direction, storage),
        decayed if decay == "learning_rate" else None,
        None if rules is None or not rules.table else scale_by_rules(rules),
        step or (descend() if schedule_inside else scale_by_learning_rate(learning_rate)),
        None if decay == "learning_rate" else decayed,
        frozen=frozen,
    )


def moving_rules(rules: Any) -> ParameterRules | None:
    """The rules of the leaves that are not frozen: all that a stage gets to see."""
    if rules is not None and not isinstance(rules, ParameterRules):
        raise TypeError(f"rules must come from parameter_rules({{...}}), got {rules!r}.")
    return None if rules is None else rules.without_frozen()


def unpack(
    learning_rate: Any, momentum: Any, b2: Any, common: Common
) -> tuple[Any, Any, Any, Common]:
    """Learning rate, momentum, b2 and keywords, with the schedules that the first argument carries.

    ``one_cycle``, ``phases`` and ``warm_restarts`` give objects with ``learning_rate`` and some of
    ``momentum``, ``b2``, ``weight_decay`` and ``l2``; those they have take the place of the
    optimizer's own. A momentum of None, no buffer, stays None.
    """
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            f"learning_rate must be a number, a schedule, or an object such as one_cycle(...), got "
            f"the transformation {learning_rate!r}."
        )
    if not hasattr(learning_rate, "learning_rate"):
        return learning_rate, momentum, b2, common
    carrier = learning_rate
    carried: dict[str, Any] = {
        key: getattr(carrier, key, None)
        for key in ("weight_decay", "l2")
        if getattr(carrier, key, None) is not None
    }
    if "l2" in carried and "weight_decay" not in carried:
        carried["weight_decay"] = None  # a plan that decays by L2 does not decay twice
    merged: Any = {**common, **carried}
    if merged.get("base_learning_rate") is None:
        for name in ("base_learning_rate", "max_learning_rate"):
            if getattr(carrier, name, None) is not None:
                merged["base_learning_rate"] = getattr(carrier, name)
                break
    if momentum is not None and getattr(carrier, "momentum", None) is not None:
        momentum = carrier.momentum
    b2 = b2 if getattr(carrier, "b2", None) is None else carrier.b2
    return carrier.learning_rate, momentum, b2, merged


DIRECTION_KEYS = ("amsgrad", "rectify", "eps_hat", "bias_correction", "state_dtype")


def split(common: Common) -> tuple[dict[str, Any], dict[str, Any]]:
    """Common keywords for the direction, and those for ``finish``."""
    rest: dict[str, Any] = {**common}
    direction = {key: rest.pop(key) for key in DIRECTION_KEYS if key in rest}
    return direction, rest
