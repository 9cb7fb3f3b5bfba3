"""Build and time the jitted step of one JAX contender, and read the compiler's figures.

One step is `update` and the addition to the parameters in one `jit`, parameters and state
donated, the gradient not. Nothing here depends on the kind of device.
"""

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import contenders, hlo, trees


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step_of(rule: contenders.Rule, in_jit: int = 1) -> Any:
    """Return a step, or a function of several: `(carried, state, gradients)` to the first two."""
    update = optax.with_extra_args_support(rule.transformation).update

    def step(carried: Any, state: Any, gradients: Any) -> Any:
        updates, state = update(gradients, state, carried, value=1.0)  # the loss, for KOALA
        return optax.apply_updates(carried, updates), state

    def many(carried: Any, state: Any, gradients: Any) -> Any:
        def body(loop: Any, _: None) -> Any:
            # Without the barrier XLA moves everything that depends on the gradient alone out of
            # the loop, and writes it out.
            (carried, state), held = jax.lax.optimization_barrier((loop, gradients))
            return step(carried, state, held), None

        return jax.lax.scan(body, (carried, state), None, length=in_jit)[0]

    return many if in_jit > 1 else step


class JaxStep:
    """The step of a JAX contender over a tree.

    Args:
        contender: What to run.
        tree: Name of the tree.
        dtype: Dtype of parameters and gradients.
        in_jit: Steps in one call; above 1, the dispatch is not timed.
        dump: Folder for the optimized HLO.
    """

    def __init__(
        self,
        contender: contenders.Contender,
        tree: str,
        dtype: str = "float32",
        in_jit: int = 1,
        dump: str | None = None,
    ):
        self.rule = contenders.build(contender)
        self.shapes = trees.shapes(tree)
        self.size = trees.count(self.shapes)
        self.dtype = jnp.dtype(dtype)
        self.in_jit = in_jit
        described = {
            name: jax.ShapeDtypeStruct(shape, self.dtype) for name, shape in self.shapes.items()
        }
        self._abstract = (
            jax.eval_shape(self.rule.carry, described),
            jax.eval_shape(lambda p: self.rule.transformation.init(self.rule.carry(p)), described),
            described,
        )
        self.times = self._compile()
        text = str(self.compiled.as_text())
        if dump:
            Path(dump).mkdir(parents=True, exist_ok=True)
            (Path(dump) / f"{_file_name(contender.label)}.hlo.txt").write_text(text)
        smallest = min(math.prod(shape) for shape in self.shapes.values())
        self.census = hlo.census(text, max(2, min(smallest, hlo.ARRAY_SIZED)))

    def _compile(self) -> dict[str, float]:
        marks = [time.perf_counter()]
        step = jax.jit(step_of(self.rule, self.in_jit), donate_argnums=(0, 1))
        traced = step.trace(*self._abstract)
        marks.append(time.perf_counter())
        lowered = traced.lower()
        marks.append(time.perf_counter())
        self.compiled = lowered.compile()
        marks.append(time.perf_counter())
        return {
            "trace_s": marks[1] - marks[0],
            "lower_s": marks[2] - marks[1],
            "compile_s": marks[3] - marks[2],
            "total_s": marks[3] - marks[0],
        }

    def fill(self) -> None:
        """Make the arrays, the same for every contender."""
        params, self.gradients = {}, {}
        for index, (name, shape) in enumerate(self.shapes.items()):
            random = np.random.default_rng(index)
            params[name] = jnp.asarray(
                0.02 * random.standard_normal(shape, dtype=np.float32), self.dtype
            )
            self.gradients[name] = jnp.asarray(
                1e-2 * random.standard_normal(shape, dtype=np.float32), self.dtype
            )
        # Copy each array: the same buffer cannot be donated twice, and a new state may hold
        # the parameters themselves.
        carried = jax.tree.map(jnp.copy, self.rule.carry(params))
        self.state = jax.tree.map(jnp.copy, self.rule.transformation.init(carried))
        self.carried = carried
        jax.block_until_ready((self.carried, self.state, self.gradients))

    def run(self, steps: int) -> None:
        """Run that many steps and wait for each (in calls of `in_jit` steps)."""
        for _ in range(steps // self.in_jit):
            self.carried, self.state = self.compiled(self.carried, self.state, self.gradients)
            jax.block_until_ready((self.carried, self.state))

    def probe(self) -> np.ndarray:
        """Return some parameters of the leaf whose name sorts first, to check that they change."""
        first = jax.tree.leaves(self.carried)[0]
        return np.asarray(jnp.ravel(first)[:4096], np.float64)

    def facts(self) -> dict[str, Any]:
        """Return the figures that need no clock."""
        carried, state, params = self._abstract
        device = jax.devices()[0]
        donated = _bytes(carried) + _bytes(state)
        facts = {
            "device": device.device_kind,
            "leaves": len(self.shapes),
            "params": self.size,
            **self.times,
            "kernels": self.census.array_kernels,
            "small_kernels": self.census.small_fusions,
            "copies": self.census.copies,
            # The analysis counts the body of a loop once, so this is one step in any case.
            "bytes_per_param": hlo.bytes_accessed(self.compiled) / self.size,
            "scratch_per_param": hlo.scratch_bytes(self.compiled) / self.size,
            "state_per_param": (donated - _bytes(params)) / self.size,
        }
        # A TPU or GPU pads scalars, so the alias may be larger than what was donated.
        if hlo.aliased_bytes(self.compiled) < donated:
            facts["note"] = "not every donated buffer is reused"
        statistics = device.memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            facts["device_mib"] = statistics["peak_bytes_in_use"] / 2**20
        return facts


def _file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in label)
