"""The golden case of ``refresh_batch_stats``: one layer over recorded batches, no trajectory."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamw_jax.update import refresh_batch_stats
from tests.golden_cases import Case

SYSTEM = "batch-norm recomputation"


def replay_batch_norm(case: Case) -> dict[str, np.ndarray]:
    """The statistics over the batches of the case, under the names of its arrays."""
    sizes = case.hyperparameters["batch_sizes"]
    batches = [jnp.asarray(case.arrays[f"batch_{i}"]) for i in range(len(sizes))]
    assert [len(batch) for batch in batches] == sizes
    assert all(batch.shape[1] == case.hyperparameters["channels"] for batch in batches)
    stats = refresh_batch_stats(
        lambda x: {"mean": x.mean(0), "var": x.var(0)}, batches, values_per_example=1
    )
    return {f"running_{name}": np.asarray(array) for name, array in stats.items()}
