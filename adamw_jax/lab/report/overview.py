"""Draw the picture at the top of a report, with one panel from each of several experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from adamw_jax.lab.results import Figure, Panel, Result

CHOSEN = (
    ("one_cycle", "accuracy", 0, "1cycle against constant lr: {}"),
    ("decoupled_decay", "heat_mnist1d", 0, "{}, MNIST-1D"),
    ("decoupled_decay", "heat_mnist1d", 1, "{}, MNIST-1D"),
    ("radam", "learning_rates", 0, "No warm-up: {}"),
    ("decay_scale", "kept", 0, "Decay of a weight under pure noise"),
    ("reddi", "path", 0, "Reddi's counter-example"),
)
"""Experiment, figure, number of the panel, its new title."""


def overview(title: str, results: Mapping[str, Result]) -> Figure | None:
    """Return the picture, or None if fewer than four of its panels were measured."""
    panels = []
    for experiment, name, number, heading in CHOSEN:
        figures = results[experiment].figures if experiment in results else ()
        for figure in figures:
            if figure.name == name and number < len(figure.panels):
                panel: Panel = figure.panels[number]
                panels.append(dataclasses.replace(panel, title=heading.format(panel.title)))
    if len(panels) < 4:
        return None
    return Figure(
        name="overview",
        title=title,
        alt="Six panels: accuracy under 1cycle and under a constant learning rate; heat maps of "
        "decoupled decay and of L2 over learning rates; AdamW and RAdam without warm-up over "
        "learning rates; decay of a weight under noise gradients; Reddi's counter-example. Each "
        "is described in its own section.",
        panels=panels,
        columns=3,
        panel_size=(4.9, 3.7),
    )
