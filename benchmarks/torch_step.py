"""Run one torch contender on the same numbers as the JAX contenders."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import contenders, trees


class TorchStep:
    """The `optimizer.step()` of a torch contender over a tree; eager, so nothing is compiled."""

    def __init__(self, contender: contenders.Contender, tree: str, dtype: str = "float32"):
        self._factory = contenders.build(contender)
        self.shapes = trees.shapes(tree)
        self.size = trees.count(self.shapes)
        self.dtype = getattr(torch, dtype)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def fill(self) -> None:
        """Make the arrays, the same for every contender."""
        self.params = []
        for index, shape in enumerate(self.shapes.values()):
            random = np.random.default_rng(index)
            param, gradient = (
                torch.from_numpy(scale * random.standard_normal(shape, dtype=np.float32)).to(
                    self.device, self.dtype
                )
                for scale in (0.02, 1e-2)
            )
            param.requires_grad_(True).grad = gradient
            self.params.append(param)
        self.optimizer = self._factory(self.params)

    def run(self, steps: int) -> None:
        """Run that many steps and wait for each."""
        for _ in range(steps):
            self.optimizer.step()
            if self.device == "cuda":
                torch.cuda.synchronize()

    def probe(self) -> np.ndarray:
        """Return some parameters of the leaf whose name sorts first, to check that they change."""
        first = self.params[list(self.shapes).index(min(self.shapes))].detach().ravel()[:4096]
        return first.to("cpu", torch.float64).numpy()

    def facts(self) -> dict[str, Any]:
        """Return the figures that need no clock."""
        held = {  # by place: bitsandbytes shares its tables between parameters
            value.data_ptr(): value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        }
        facts: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else self.device,
            "leaves": len(self.shapes),
            "params": self.size,
            "state_per_param": sum(held.values()) / self.size,
        }
        if self.device == "cuda":
            facts["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return facts
