"""Rows of the golden table for Lookahead, around optimizers that the manifest writes as calls."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import optax

import adamw_jax as aj
from tests.golden_cases import Case
from tests.golden_rows import Options, Row, not_offered, where

SOURCES = {"torch": "torch", "optim": "torch", "optax": "optax", "fastai": "fastai2"}
"""Whose code a word before the name of an optimizer means; "official" is its authors'."""


def read_call(text: str) -> tuple[list[str], list[Any], dict[str, Any]]:
    """Words, positional and named arguments of a call, with brackets or without.

    >>> read_call("torch SGD lr=0.1 momentum=0.9")
    (['torch', 'SGD'], [], {'lr': 0.1, 'momentum': 0.9})
    >>> read_call("optax.adam(0.01, b1=0.8)")
    (['optax', 'adam'], [0.01], {'b1': 0.8})
    """
    found = re.fullmatch(r"\s*([\w. ]+?)\s*((?=\(|\b\w+\s*=|$).*)", text)
    assert found, f"no call: {text!r}"
    name, given = found.groups()
    if not given.startswith("("):
        given = "(" + re.sub(r"[,;]?\s+(?=\w+\s*=)", ", ", given) + ")"
    given = re.sub(r"\b(true|false|null)\b", lambda m: _WORDS[m[0]], given)
    call: Any = ast.parse(f"f{given}", mode="eval").body
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return re.split(r"[. ]+", name), [ast.literal_eval(value) for value in call.args], named


_WORDS = {"true": "True", "false": "False", "null": "None"}


def stands_for(text: str, case: Case) -> Case:
    """The optimizer in words as a case of its own."""
    try:
        words, positional, named = read_call(text)
    except (AssertionError, SyntaxError, ValueError) as error:
        raise AssertionError(f"{case.label}: cannot read the optimizer {text!r}") from error
    system, before = words[-1].lower(), words[-2] if len(words) > 1 else "torch"
    source = f"{system}_official" if before == "official" else SOURCES.get(before, before)
    if positional and source == "optax":
        named |= inspect.signature(getattr(optax, system)).bind(*positional).arguments
    elif positional:
        ((named["lr"],), positional) = (positional, [])
    return case.changed(system=system, source_key=source, hyperparameters=named)


def optimizer(text: str, case: Case) -> Options:
    """Arguments of ``apply``."""
    from tests.golden_table import row_of  # which holds these rows, too

    other = stands_for(text, case)
    row = row_of(other)
    return {"function": row.function, **row.arguments(other)}


def apply(function: Callable[..., Any], before: Any = None, **options: Any) -> Any:
    made = function(**options)
    return made if before is None else aj.compose(before, made)


def inner(text: str, case: Case) -> Options:
    return {"inner": apply(**optimizer(text, case))}


def pulled_back(value: str, case: Case) -> Options:
    """What a sync does to the momentum buffer, the only state that PyTorch's versions know of."""
    inside = stands_for(case.hyperparameters.get("inner", ""), case)
    if inside.system != "sgd":
        return {"inner_state": "keep"}
    # The official code pulls the live buffer back to itself, which nothing here repeats.
    aliased = value == "pullback" and case.source == "lookahead_official" and not case.is_negative
    # PyTorch dampens the first entry of an emptied buffer, unlike that of a new one.
    dampened = value == "reset" and inside.hyperparameters.get("dampening")
    said = not_offered("pullback_momentum", value, case)
    assert not aliased, said
    assert not dampened, f"{said} with dampening"
    return {"inner_state": {"none": "keep"}.get(value, value)}


def torch_lookahead(**defaults: Any) -> Row:
    return Row(
        aj.lookahead,
        {
            "inner": inner,
            **dict.fromkeys(("k", "la_steps"), "sync_period"),
            **dict.fromkeys(("alpha", "la_alpha"), "slow_step_size"),
            "pullback_momentum": pulled_back,
        },
        defaults={"k": 5, "pullback_momentum": "none", **defaults},
    )


ROWS: dict[tuple[str, str], list[Row]] = {
    ("lookahead", "lookahead_official"): [torch_lookahead(alpha=0.8)],
    ("lookahead", "pytorch_optimizer"): [torch_lookahead(alpha=0.5)],
    ("lookahead", "optax"): [
        Row(
            aj.lookahead,
            {
                **dict.fromkeys(("inner", "fast_optimizer"), inner),
                "sync_period": "sync_period",
                "slow_step_size": "slow_step_size",
                "reset_state": where(inner_state={True: "reset", False: "keep"}),
            },
            defaults={"reset_state": False},
        )
    ],
}
