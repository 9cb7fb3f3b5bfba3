"""This library's schedules in the place of the values that a golden case recorded."""

from __future__ import annotations

import re
from collections.abc import Callable

import adamw_jax as aj
from tests.golden_cases import Case
from tests.golden_rows import Options


def steps_of(case: Case) -> int:
    return case.entry["steps"]


def article_cycle(case: Case) -> Options:
    """The article's phases: three, or four with a plateau."""
    h = case.hyperparameters
    lengths = h["nbs"]
    whole, plateau = sum(lengths), len(lengths) == 4
    cycle = aj.one_cycle(
        h["lr"],
        round(whole * h["batches_per_epoch"]),
        "article_plateau" if plateau else "article",
        momentum=tuple(h["moms"]),
        div=h["div"],
        pct_end=lengths[-1] / whole,
        linear_end=h["lin_end"],
        **({"pct_start": lengths[0] / whole} if plateau else {}),
    )
    return {"learning_rate": cycle}


def fastai_v1_cycle(case: Case) -> Options:
    h = case.hyperparameters
    cycle = aj.one_cycle(
        h["lr_max"],
        h["total_steps"],
        "fastai_v1",
        momentum=tuple(h["moms"]),
        pct_start=h["pct_start"],
        div=h["div_factor"],
        final_div=h["final_div"],
    )
    return {"learning_rate": cycle}


def fastai_v2_cycle(case: Case) -> Options:
    h = case.hyperparameters
    cycle = aj.one_cycle(
        h["lr"],
        steps_of(case),
        "fastai_v2",
        momentum=tuple(h["mom"]),
        pct_start=h["pct"],
        div=h["div"],
        final_div=h["div_final"],
    )
    return {"learning_rate": cycle}


def decay_schedule(case: Case) -> Options:
    """fastai 0.7 ``use_wd_sched``: cosine cycles or none, decay normalised by the cycle or not."""
    h = case.hyperparameters
    decay, cycle = h["wds"], h["cycle_len"]
    if h["norm_wds"]:
        decay = aj.normalized_decay(decay, h["batches_per_epoch"] * (cycle or 1))
    if cycle is None:
        assert not h["mult"]
        return {"learning_rate": h["lr"], "weight_decay": decay}
    restarts = aj.warm_restarts(
        h["lr"],
        cycle,
        1,
        steps_per_epoch=h["batches_per_epoch"],
        convention="fastai07",
        total_steps=steps_of(case),
    )
    twice = lambda count: decay * restarts.multiplier(count)  # noqa: E731
    return {
        "learning_rate": restarts.learning_rate,
        "weight_decay": twice if h["mult"] else decay,
    }


def authors_restarts(normalized: bool = False) -> Callable[[Case], Options]:
    """The schedule of the AdamW authors' code."""

    def make(case: Case) -> Options:
        h = case.hyperparameters
        if h.get("LRdec") == "false":
            return {"learning_rate": h["LR"]}
        restarts = aj.warm_restarts(
            h["LR"],
            h["Te"],
            h["Tmult"],
            steps_per_epoch=h["nBatches"],
            normalized_decay=h["wd"] if normalized else None,
            convention="authors",
            total_steps=steps_of(case),
        )
        return {"learning_rate": restarts}

    return make


def paper_restarts(case: Case) -> Options | None:
    """Cosine restarts in the paper's indexing, where the manifest gives the periods."""
    h = case.hyperparameters
    told = re.search(r"T0=(\d+), Tmult=(\d+)", h["eta"])
    if told is None:
        return None
    return {"learning_rate": aj.warm_restarts(h["alpha"], int(told[1]), int(told[2]))}
