"""The benchmark section of small state: its tree, its contenders, its figures, at a tiny size."""

import sys
import types

import pytest

from benchmarks import contenders, suite, trees, worker
from benchmarks.jax_step import JaxStep


def test_a_smaller_gpt2_keeps_the_share_of_its_embedding():
    whole, small = (trees.shapes(name) for name in ("gpt2", "gpt2:12:384"))
    assert whole.keys() == small.keys()
    shares = [tree["wte"][0] / tree["layer0.mlp_in.kernel"][1] for tree in (whole, small)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)
    assert len(trees.shapes("gpt2:2:384")) == len(small) - 120


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("storage", "bytes_of_state"),
    [
        ("8bit", 2 + 8 / 256),
        ("float8", 2 + 8 / 256),
        ("roots", 2 + 4 / 128),
        ("bfloat16", 4),
        ("4bit", 1 + 4 / 128 + 4 / 64 + 4 / 1024),
    ],
)
def test_state_and_scratch_are_measured(storage, bytes_of_state):
    name = f"ours:adamw(storage='{storage}')"
    assert any(name in section.arguments for section in suite.SECTIONS.values())
    facts = JaxStep(contenders.parse(name), "same:2:64:1024").facts()
    assert facts["state_per_param"] == pytest.approx(bytes_of_state, abs=0.001)
    assert facts["scratch_per_param"] >= 0


def test_without_bitsandbytes_its_contender_is_absent(monkeypatch):
    pytest.importorskip("torch", reason="bitsandbytes runs on torch, which is absent before it")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(worker.AbsentError, match="bitsandbytes"):
        worker.make("bnb:adamw8bit", worker.Options("tiny:2"))


def test_bitsandbytes_gets_the_options_and_shared_tables_count_once(monkeypatch):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_step import TorchStep

    given = {}

    class AdamW8bit(torch.optim.SGD):
        def __init__(self, params, **options):
            given.update(options)
            super().__init__(params, lr=options["lr"])
            table = torch.zeros(256)
            for param in params:
                self.state[param] = {"state1": torch.zeros(64, dtype=torch.uint8), "qmap1": table}

    fake = types.ModuleType("bitsandbytes")
    fake.optim = types.SimpleNamespace(AdamW8bit=AdamW8bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    step = TorchStep(contenders.parse("bnb:adamw8bit"), "tiny:4")
    step.fill()
    step.run(1)
    assert given == {"lr": contenders.LEARNING_RATE, "weight_decay": 1e-4}
    assert step.facts()["state_per_param"] == (4 * 64 + 1024) / 256
    with pytest.raises(ValueError, match="adamw8bit only"):
        contenders.build(contenders.parse("bnb:lion8bit"))
