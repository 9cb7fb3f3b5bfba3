"""Check that the stages of a recipe fit together: their kinds match, their names differ.

>>> from adamw_jax import precondition
>>> check_kinds((precondition().spec,))  # doctest: +ELLIPSIS
Traceback (most recent call last):
ValueError: precondition takes moments, but the gradient gives gradient. Put ...
"""

from __future__ import annotations

from adamw_jax._core.declare import Hyperparameter
from adamw_jax._core.stage import Kind, Spec


def check_kinds(specs: tuple[Spec, ...]) -> None:
    """Raise if a stage takes another kind than the stage before it gives; name the remedy."""
    kind, before, foreign = Kind.GRADIENT, "the gradient", None
    for spec in specs:
        if spec.takes is None:
            if kind is Kind.MOMENTS:
                raise ValueError(
                    f"{spec.name} is between stages on moments, where only stages of adamw_jax are "
                    "allowed: put it before estimate_moments or after precondition, or use "
                    "only(stage, where) to mask one stage."
                )
            foreign = spec.name
            continue
        if spec.takes is not kind:
            remedy = _REMEDY[kind, spec.takes]
            if foreign is not None and kind is Kind.GRADIENT and spec.takes is not Kind.MOMENTS:
                remedy = _OF_FOREIGN.format(foreign)
            raise ValueError(
                f"{spec.name} takes {spec.takes.value}, but {before} gives {kind.value}. {remedy}"
            )
        assert spec.gives is not None
        kind, before, foreign = spec.gives, spec.name, None
    if kind is Kind.MOMENTS:
        raise ValueError(
            f"the recipe ends with {before}, which gives moments: add precondition(), which turns "
            "moments into a direction."
        )


_OF_FOREIGN = (
    "compose() takes the output of {}, an optax transformation, for the same kind as its input. "
    "If it is a complete optimizer, such as optax.lion(1e-3), write as_optimizer(...) around it; "
    "if it returns a direction without a learning rate, such as optax.scale_by_lion(), "
    "as_direction(...). Put optax.MultiSteps around the whole recipe."
)
_LATE = "Move it before the stages that already turned the gradient into something else."
_REMEDY = {
    (Kind.GRADIENT, Kind.MOMENTS): "Put estimate_moments(...) before it.",
    (Kind.GRADIENT, Kind.DIRECTION): "Put estimate_moments(...) and precondition() before it; "
    "estimate_moments(no_moment(), no_moment()) makes plain gradient descent.",
    (Kind.GRADIENT, Kind.UPDATE): "Put a whole optimizer before it, such as adamw(1e-3).",
    (Kind.MOMENTS, Kind.DIRECTION): "Put precondition() before it.",
    (Kind.MOMENTS, Kind.UPDATE): "Put precondition() and scale_by_learning_rate(...) before it.",
    (Kind.DIRECTION, Kind.UPDATE): "Put scale_by_learning_rate(...) of adamw_jax before it.",
    (Kind.MOMENTS, Kind.GRADIENT): _LATE,
    (Kind.DIRECTION, Kind.GRADIENT): _LATE,
    (Kind.DIRECTION, Kind.MOMENTS): _LATE,
    (Kind.UPDATE, Kind.GRADIENT): _LATE,
    (Kind.UPDATE, Kind.MOMENTS): _LATE,
    (Kind.UPDATE, Kind.DIRECTION): _LATE,
}


def check_names(specs: tuple[Spec, ...]) -> None:
    """Raise if two stages with state have the same name."""
    seen: set[str] = set()
    for spec in specs:
        if spec.init is None or spec.foreign:  # the latter's state is known only in init
            continue
        if spec.name in seen:
            raise ValueError(twice(spec.name))
        seen.add(spec.name)


def check_weights(specs: tuple[Spec, ...]) -> None:
    """Raise if a stage averages parameters that are not the weights to evaluate."""
    own = [spec.name for spec in specs if spec.weights == "own"]
    averaged = [spec.name for spec in specs if spec.weights == "averaged"]
    if own and averaged:
        raise ValueError(
            f"with {own[0]} the parameters are not the weights to evaluate, so {averaged[0]} would "
            f"average something else: leave {averaged[0]} out, eval_params(state, params) gives "
            f"the weights of {own[0]}."
        )


def twice(name: str) -> str:
    """Make the error text for two stages of one name."""
    return (
        f"two stages with state are called {name!r}: name one of them with a pair, "
        f"('other_{name}', stage), so that a checkpoint can tell them apart."
    )


def share_hyperparams(
    specs: tuple[Spec, ...],
) -> tuple[tuple[dict[str, str], ...], dict[str, Hyperparameter]]:
    """Map the hyperparameters of each stage to their names in the state.

    If several stages share a name, each becomes ``stage.name``; a learning rate, or the multiplier
    of a group of parameters, that is the same in all of them keeps one name. Other names never
    depend on values, so replacing a number by another or by a schedule keeps the checkpoint valid.
    """
    users: dict[str, list[Hyperparameter]] = {}
    for spec in specs:
        for name, hyper in spec.hyperparams.items():
            users.setdefault(name, []).append(hyper)
    declared: dict[str, Hyperparameter] = {}
    names = []
    for spec in specs:
        own = {}
        for name, hyper in spec.hyperparams.items():
            one = name == "learning_rate" or hyper.shared
            one = one and all(hyper.same_as(other) for other in users[name])
            own[name] = name if one or len(users[name]) == 1 else f"{spec.name}.{name}"
            if own[name] in declared and not one:
                raise ValueError(
                    f"two stages called {spec.name!r} have a hyperparameter {name!r}: name one of "
                    f"them with a pair, ('other_{spec.name}', stage)."
                )
            declared[own[name]] = hyper
        names.append(own)
    return tuple(names), declared
