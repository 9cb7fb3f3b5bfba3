"""Record runs of PyTorch that tests continue; --check compares them with the installed PyTorch.

Each file beside this one holds, in float64, the gradients of every step, the parameters
before the first step, after ``BEFORE`` and at the end, and the optimizer's entries at ``BEFORE``.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
BEFORE, STEPS = 10, 20
RUNS = {
    "adam": (torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.02}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "amsgrad": (torch.optim.AdamW, {"lr": 0.05, "betas": (0.9, 0.8), "amsgrad": True}),
    "radam": (torch.optim.RAdam, {"lr": 0.05, "betas": (0.9, 0.9)}),
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adamw_one_cycle": (torch.optim.AdamW, {"lr": 0.05, "betas": (0.95, 0.99)}),
}


def record(name: str) -> dict[str, Any]:
    """Return the arrays of one run."""
    make, options = RUNS[name]
    rng = np.random.default_rng(0)
    start = {"weight": rng.normal(size=(2, 3)), "bias": rng.normal(size=2)}
    gradients = {k: rng.normal(size=(STEPS, *v.shape)) for k, v in start.items()}
    params = [torch.nn.Parameter(torch.tensor(v)) for v in start.values()]
    optimizer, scheduler = make(params, **options), None
    if name.endswith("one_cycle"):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS)
    held: dict[str, Any] = {}
    for step in range(STEPS):
        if step == BEFORE:
            held |= {
                f"middle/{k}": p.detach().numpy().copy() for k, p in zip(start, params, strict=True)
            }
            for k, entry in zip(start, optimizer.state_dict()["state"].values(), strict=True):
                held |= {f"state/{k}/{field}": x.numpy().copy() for field, x in entry.items()}
        for k, p in zip(start, params, strict=True):
            p.grad = torch.tensor(gradients[k][step])
        optimizer.step()
        if scheduler is not None and step < STEPS - 1:
            scheduler.step()
    held |= {f"start/{k}": v for k, v in start.items()}
    held |= {f"gradient/{k}": v for k, v in gradients.items()}
    held |= {f"end/{k}": p.detach().numpy() for k, p in zip(start, params, strict=True)}
    return held


def check() -> None:
    """Raise if a recorded array is not what this PyTorch computes, up to rounding."""
    for name in RUNS:
        with np.load(FOLDER / f"{name}.npz") as recorded:
            now = record(name)
            assert sorted(now) == sorted(recorded)
            for key in recorded:
                np.testing.assert_allclose(now[key], recorded[key], rtol=1e-10, err_msg=key)
        print(f"{name}: as with torch {torch.__version__}")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(check())
    for run in RUNS:
        np.savez_compressed(FOLDER / f"{run}.npz", **record(run))
    runs = {name: {"optimizer": make.__name__, **options} for name, (make, options) in RUNS.items()}
    manifest = {
        "source": f"torch {torch.__version__}, CPU, float64",
        "before": BEFORE,
        "runs": runs,
    }
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
