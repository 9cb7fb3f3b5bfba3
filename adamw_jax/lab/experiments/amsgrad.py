"""Compare AMSGrad, in PyTorch's form, with Adam in loss and in accuracy."""

from __future__ import annotations

import functools

from adamw_jax.lab.experiments.studies import Beats, Contender, Grid, by_seed, over_grid, study
from adamw_jax.lab.recipes import ADAM, catalogue

PAIR = ("Adam", "AMSGrad")

EXPERIMENT = study(
    "amsgrad",
    Grid(),
    over_grid({
        "Adam": Contender(ADAM, "article", {"b2": 0.99, "l2": 0.0}),
        "AMSGrad": Contender(catalogue("amsgrad", maximum="raw"), "article", {"b2": 0.99}),
    }),
    claims=[
        Beats("AMSGrad", "Adam", "AMSGrad reaches a higher accuracy than Adam",
              literature="2018 article: no, never."),
        Beats("AMSGrad", "Adam", "AMSGrad reaches a lower test loss than Adam",
              metric="test_loss",
              literature="2018 article: slightly, in some runs."),
    ],
    figures=[functools.partial(
        by_seed, groups=PAIR,
        metrics={"test_accuracy": "validation_accuracy", "test_loss": "validation_accuracy"},
        name="seeds",
        title="Adam and AMSGrad, seed by seed",
        alt="Dots for every seed under Adam and under AMSGrad, joined by lines, with the means: "
        "test accuracy and test loss on each task, each optimizer at its best setting.",
    )],
    tiny={"learning_rates": (0.01,)},
    title="AMSGrad against Adam",
    question="AMSGrad keeps the largest second moment so far, which repairs Adam's proof of "
    "convergence. Does it help in problems on which Adam works?",
    setup="PyTorch's form (maximum of the raw second moment, corrected afterwards), which is also "
    "the form of the 2018 article, with its three-phase 1cycle; decoupled decay, b2 0.99, the same "
    "grid for both. Loss and accuracy are those of the same runs, each optimizer at its "
    "best setting by validation accuracy, on fresh seeds.",
    reference="Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018",
)  # fmt: skip
