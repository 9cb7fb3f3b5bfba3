"""The benchmark harness: names, trees, the reading of HLO, one small run of each kind."""

import csv
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import (
    cli,
    contenders,
    dispatch,
    hlo,
    programs,
    report,
    rounds,
    suite,
    trees,
    worker,
)
from benchmarks.jax_step import JaxStep

pytestmark = pytest.mark.optimized

ROOT = Path(__file__).resolve().parent.parent

CPU_HLO = """HloModule jit_step, is_scheduled=true

%inside (p: f32[64,32]) -> f32[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %not_a_kernel = f32[64,32]{1,0} copy(%p)
  ROOT %m = f32[64,32]{1,0} multiply(%not_a_kernel, %p)
}

%region_0.1 (a: (f32[64,32])) -> (f32[64,32]) {
  %a = (f32[64,32]{1,0}) parameter(0)
  %x = f32[64,32]{1,0} get-tuple-element(%a), index=0
  %copied = f32[64,32]{1,0} copy(%x)
  ROOT %t = (f32[64,32]{1,0}) tuple(%copied)
}

%region_1.2 (a.1: (f32[64,32])) -> (f32[64,32]) {
  %a.1 = (f32[64,32]{1,0}) parameter(0)
  %x.1 = f32[64,32]{1,0} get-tuple-element(%a.1), index=0
  %f.1 = f32[64,32]{1,0} fusion(%x.1), kind=kLoop, calls=%inside
  ROOT %t.1 = (f32[64,32]{1,0}) tuple(%f.1)
}

ENTRY %main.8 (p.1: f32[64,32], n.1: s32[]) -> (f32[64,32], s32[]) {
  %p.1 = f32[64,32]{1,0} parameter(0)
  %n.1 = s32[] parameter(1)
  %count = s32[] fusion(%n.1), kind=kLoop, calls=%add_one
  %f = f32[64,32]{1,0} fusion(%p.1), kind=kLoop, calls=%inside, metadata={op_name="jit(f)/mul"}
  %arg = (f32[64,32]{1,0}) tuple(%f)
  %c = (f32[64,32]{1,0}) conditional(%count, %arg, %arg), branch_computations={%region_0.1, \
%region_1.2}
  %y = f32[64,32]{1,0} get-tuple-element(%c), index=0
  %norm = f32[32]{0} reduce(%y, %zero), dimensions={0}, to_apply=%sum
  ROOT %out = (f32[64,32]{1,0}, s32[]) tuple(%y, %count)
}
"""
TPU_HLO = """HloModule jit_step

ENTRY %main.2 (p.1: f32[1024,1024], g.1: f32[1024,1024], n.1: f32[]) \
-> (f32[1024,1024], /*i*/f32[]) {
  %p.1 = f32[1024,1024]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %g.1 = f32[1024,1024]{1,0:T(8,128)} parameter(1)
  %n.1 = f32[]{:T(128)S(6)} parameter(2)
  %copy-start = (f32[1024,1024]{1,0:T(8,128)S(1)}, f32[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%g.1)
  %copy-done = f32[1024,1024]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %join = f32[1024,1024]{1,0:T(8,128)S(1)} custom-call(%copy-done), \
custom_call_target="ConcatBitcast"
  %fusion.1 = (f32[1024,1024]{1,0:T(8,128)}, f32[1024,1024]{1,0:T(8,128)}) fusion(%p.1, %n.1, \
/*index=2*/%join), kind=kLoop, calls=%fused
  %new = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=0
  ROOT %out = (f32[1024,1024]{1,0:T(8,128)}, f32[]{:T(128)}) tuple(%new, %n.1)
}
"""


@pytest.fixture
def relaxed():
    """Lets optax mix floats and counters, as it does in a user's hands."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    ("name", "leaves", "parameters"),
    [
        ("resnet50", 161, 25_557_032),
        ("wrn22-6", 62, 9_658_458),
        ("gpt2", 148, 124_439_808),
        ("gpt2-stacked", 16, 124_439_808),
        ("one67m", 1, 67_108_864),
        ("small", 8, 262_144),
        ("tiny:1000", 1000, 64_000),
        ("one:1000", 1, 1000),
        ("same:3:4:5", 3, 60),
    ],
)
def test_trees_have_the_published_sizes(name, leaves, parameters):
    tree = trees.shapes(name)
    assert (len(tree), trees.count(tree)) == (leaves, parameters)


@pytest.mark.parametrize("name", ["vgg", "tiny", "tiny:x", "tiny:0", "resnet50:3", "same:2:0"])
def test_an_unknown_tree_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"tree: .*{name}"):
        trees.shapes(name)


def test_names_are_parsed():
    parsed = contenders.parse("wd=ours:adamw(3e-4, weight_decay=0.1)+lookahead(sync_period=6)")
    assert parsed.label == "wd"
    assert parsed.library == "ours"
    assert parsed.calls == (
        contenders.Call("adamw", (3e-4,), {"weight_decay": 0.1}),
        contenders.Call("lookahead", (), {"sync_period": 6}),
    )
    assert contenders.parse("torch:adamw-fused").calls == (contenders.Call("adamw_fused"),)
    assert contenders.parse("torch:adamw-fused").label == "torch:adamw-fused"
    assert contenders.parse("old=ours@../old:adam").folder == "../old"
    assert contenders.parse("optax:adamw(b1=-0.5)").calls[0].keywords == {"b1": -0.5}


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "jax:adamw",
        "optax:",
        "optax:adamw(",
        "optax:adamw(lr=open('x'))",
        "optax:adamw(**{'b1': 0.5})",
        "optax:os.system('true')",
        "ours:adamw*2",
    ],
)
def test_names_that_are_no_literal_calls_are_refused(name):
    with pytest.raises(ValueError, match="contender"):
        contenders.parse(name)


def test_the_learning_rate_is_filled_in_only_where_missing():
    call = contenders.Call
    assert call("adamw").with_learning_rate().arguments == (contenders.LEARNING_RATE,)
    for given in (call("adamw", (0.1,)), call("adamw", (), {"learning_rate": 0.1})):
        assert given.with_learning_rate() == given


@pytest.mark.parametrize("name", ["optax:_src", "optax:adamw+nothing", "ours:jax"])
def test_only_public_functions_can_be_called(name):
    with pytest.raises(ValueError, match="no public function"):
        contenders.build(contenders.parse(name))


def test_cpu_kernels_are_counted_once_and_in_every_branch():
    assert hlo.census(CPU_HLO) == hlo.Census(
        array_fusions=2, small_fusions=1, copies=1, others=1, transfers=0
    )
    assert hlo.census(CPU_HLO).array_kernels == 4
    assert hlo.census(CPU_HLO, array_sized=10_000).array_kernels == 0


def test_tpu_kernels_are_counted_without_prefetches():
    assert hlo.census(TPU_HLO) == hlo.Census(
        array_fusions=1, small_fusions=0, copies=0, others=0, transfers=1
    )
    assert hlo.array_fusions(TPU_HLO) == 1


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.census("nothing here")


def test_a_known_step_has_the_kernels_and_bytes_one_can_count_by_hand():
    def step(p, m, g):
        m = 0.9 * m + g
        return p - 0.1 * m, m

    leaf = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = hlo.compile_step(step, leaf, leaf, leaf)
    assert hlo.census(compiled.as_text()) == hlo.Census(2, 0, 0, 0, 0)
    by_hand = 6 * 4 * 256 * 256  # g m -> m; p m -> p
    assert hlo.bytes_accessed(compiled) == pytest.approx(by_hand, abs=64)
    assert hlo.scratch_bytes(compiled) < 1024
    assert hlo.aliased_bytes(compiled) == 2 * 4 * 256 * 256


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (jax[tpu] has it)"
)
def test_a_step_compiles_for_a_tpu_that_is_not_there():
    leaf = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    compiled = hlo.compile_step(
        lambda p, m, g: (p - 0.9 * m - g, 0.9 * m + g), leaf, leaf, leaf, device=hlo.tpu_device()
    )
    assert hlo.census(compiled.as_text()).array_fusions == 1


@pytest.mark.usefixtures("relaxed")
def test_jax_step_does_what_the_optimizer_does():
    made = JaxStep(contenders.parse("optax:adamw(0.01)"), "same:2:4:8")
    made.fill()
    params = {name: np.asarray(leaf) for name, leaf in made.carried.items()}
    made.run(3)
    tx = optax.adamw(0.01)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(made.gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, leaf in params.items():
        np.testing.assert_allclose(made.carried[name], leaf, rtol=1e-6)


@pytest.mark.usefixtures("relaxed")
def test_steps_in_one_jit_equal_steps_apart():
    apart, together = (
        JaxStep(contenders.parse("optax:adam"), "tiny:2", in_jit=in_jit) for in_jit in (1, 4)
    )
    for made in (apart, together):
        made.fill()
        made.run(8)
    np.testing.assert_allclose(together.probe(), apart.probe(), rtol=1e-6)


@pytest.mark.usefixtures("relaxed")
def test_a_small_run_in_this_process_gives_every_figure(tmp_path):
    options = worker.Options("tiny:3", sample_s=0.0, period=5, dump=str(tmp_path))
    made = worker.make("optax:adamw+lookahead(sync_period=5)", options)
    sample, facts = made.sample(), made.facts()
    assert sample["seconds"] > 0
    assert {"cpu", "cores", "others"} < set(sample)
    assert facts["steps_per_sample"] == 5
    assert facts["leaves"] == 3
    assert facts["state_per_param"] == pytest.approx(12, abs=0.5)  # two moments, slow weights
    assert facts["kernels"] >= 3 * 3
    assert facts["bytes_per_param"] > 28
    assert facts["scratch_per_param"] >= 0
    assert facts["travel"] > 0
    assert all(facts[f"{phase}_s"] > 0 for phase in ("trace", "lower", "compile", "total"))
    assert "ENTRY" in next(tmp_path.glob("*.hlo.txt")).read_text()


@pytest.mark.usefixtures("relaxed")
@pytest.mark.parametrize("name", ["guard", "accumulate"])
def test_sections_of_wrappers_run_at_a_tiny_size(name):
    arguments = suite.SECTIONS[name].arguments
    bounded = {bound.contender for bound in suite.SECTIONS[name].bounds}
    period = 4 if "--period" in arguments else 1
    for contender in (each for each in arguments if each.startswith(("ours:", "optax:"))):
        made = worker.make(contender, worker.Options("tiny:3", sample_s=0.0, period=period))
        assert made.sample()["seconds"] > 0
        assert made.facts()["scratch_per_param"] >= 0
        bounded.discard(contender)
    assert not bounded


@pytest.mark.usefixtures("relaxed")
def test_bfloat16_parameters_keep_their_dtype():
    made = JaxStep(contenders.parse("optax:adamw(mu_dtype='float32')"), "tiny:2", "bfloat16")
    made.fill()
    made.run(1)
    assert {leaf.dtype for leaf in made.carried.values()} == {jnp.dtype(jnp.bfloat16)}
    assert made.facts()["state_per_param"] == pytest.approx(6, abs=0.1)


def test_contenders_that_do_not_fit_run_in_groups_each_with_the_baseline():
    options = worker.Options("gpt2")
    each = 5 * 4 * 124_439_808 + 0.4 * rounds.GIB
    assert rounds.groups(["a", "b", "c", "d"], "a", options, 3.5 * each) == [
        ["a", "b", "c"],
        ["a", "d"],
    ]
    assert rounds.groups(["a"], "a", options, 0.0) == [["a"]]


def test_the_statistics_use_quiet_rounds_and_pair_by_round():
    def run(*seconds):
        made = rounds.Run("x", None, None)
        made.samples = [
            {"seconds": s, "cpu": s, "cores": 1.0, "others": 1.0 if s > 10 else 0.0}
            for s in seconds
        ]
        return made

    base, other = run(1.0, 2.0, 4.0, 100.0), run(2.0, 2.0, 4.0, 3.0)
    assert rounds._kept([base, other])
    row = rounds._statistics(other, base, quiet_only=True)
    assert row["ratio_paired"] == 1.0  # of 2, 1, 1; the loud fourth round is left out
    assert row["ratio_min"] == 2.0
    assert row["ratio_median"] == 1.25
    assert row["quiet_rounds"] == 4
    assert not rounds._kept([run(11.0, 11.0, 1.0)])


def test_the_command_line_runs_processes_and_writes_tables(tmp_path):
    files = [str(tmp_path / f"out.{suffix}") for suffix in ("md", "csv", "json")]
    names = ["optax:sgd", "typo=optax:adamv", "torch:adamw-fused"]
    command = [sys.executable, "-m", "benchmarks", "step", "--tree", "tiny:2", "--repeats", "2"]
    command += ["--sample-s", "0", *names]
    for file in files:
        command += ["--out", file]
    blocked = tmp_path / "torch.py"  # so that torch is absent, wherever this runs
    blocked.write_text("raise ModuleNotFoundError('no torch here', name='torch')")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # the misspelt one failed
    assert "no public function 'adamv'" in done.stdout
    rows = json.loads(Path(files[2]).read_text())["rows"]
    assert [row["contender"] for row in rows] == ["optax:sgd", "typo", "torch:adamw-fused"]
    assert rows[0]["ratio_median"] == 1.0
    assert rows[2]["note"] == "absent: no torch here"
    assert len(list(csv.DictReader(Path(files[1]).read_text().splitlines()))) == 3
    assert "| optax:sgd |" in Path(files[0]).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--tree", "vgg"], "no tree"),
        (["step", "--out", "x.txt"], ".md, .csv or .json"),
        (["lookahead", "--period", "0"], "at least 1"),
        (["step", "adamw"], "names no library"),
        (["suite", "nothing"], "no 'nothing'"),
    ],
)
def test_a_bad_command_line_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def test_tables_leave_out_empty_columns_and_keep_figures():
    rows = [{"contender": "a|b", "median_s": 0.0015, "kernels": 3, "note": ""}]
    cells = report.table(rows)
    assert cells == [["contender", "median ms", "kernels"], ["a|b", "1.500", "3"]]
    assert report.markdown(cells).splitlines()[1:] == [
        "| --- | ---: | ---: |",
        r"| a\|b | 1.500 | 3 |",
    ]
    assert math.isclose(float(report.text(cells).splitlines()[1].split()[1]), 1.5)


def test_bandwidth_is_bytes_moved_over_the_median_time():
    """From stored fields, so that rows taken before the column was have it, too."""
    row = {"contender": "a", "params": 1_000_000, "bytes_per_param": 40.0, "median_s": 0.002}
    unknown = {"contender": "torch", "params": 1_000_000, "median_s": 0.002}
    cells = report.table([row, unknown])
    at = cells[0].index("GB/s")
    assert [line[at] for line in cells[1:]] == ["20.0", ""]
    assert "bandwidth" not in row


def test_the_page_has_each_section_with_its_bounds(tmp_path):
    rows = [
        {"contender": "optax:adamw", "ratio_paired": 1.0, "median_s": 0.01, "note": ""},
        {"contender": "ours:adamw", "ratio_paired": 1.05, "scratch_per_param": 0.0, "note": ""},
    ]
    found = {"command": "python -m benchmarks step", "machine": "this one", "rows": rows}
    (tmp_path / "adamw-resnet50.json").write_text(json.dumps(found))
    page = suite.page(tmp_path)
    assert "- `ours:adamw` / `optax:adamw`: 1.050, at most 1.03: **missed**" in page
    assert "- `ours:adamw` scratch_per_param: 0.000, at most 0.01: met" in page
    rows[0]["note"] = "other work ran in most rounds"
    (tmp_path / "adamw-resnet50.json").write_text(json.dumps(found))
    assert "**missed**, but other work ran: undecided" in suite.page(tmp_path)
    assert "compile" not in page.split("## ")[1]
    suite.rows_csv(tmp_path, tmp_path / "all.csv")
    (first, _) = csv.DictReader((tmp_path / "all.csv").read_text().splitlines())
    assert first["section"] == "adamw-resnet50"


def test_every_section_of_the_suite_is_a_valid_command_that_runs_what_it_bounds():
    for section in suite.SECTIONS.values():
        given = cli.parser().parse_args(list(section.arguments))
        labels = {contenders.parse(name).label for name in given.contenders}
        for bound in section.bounds:
            assert {bound.contender, bound.against or bound.contender} <= labels
        trees.shapes(given.tree or "tiny:1000")


@pytest.mark.slow
def test_both_sides_of_a_dispatch_take_their_steps(tmp_path):
    assert cli.main(["dispatch", "--rounds", "1", "--page", str(tmp_path / "page.md")]) == 0
    rows = [
        line for line in (tmp_path / "page.md").read_text().splitlines() if "ours:adamw" in line
    ]
    assert len(rows) == len(dispatch.COMPARISONS)


def test_a_program_reaches_the_floor_of_its_device(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "contenders", lambda: [("sgd", optax.sgd(0.1))])
    monkeypatch.setattr(hlo, "tpu_device", _absent)
    monkeypatch.setattr(hlo, "gpu_device", _absent)
    programs.write(tmp_path / "page.md")
    *_, row = (tmp_path / "page.md").read_text().splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("sgd", "12.0", "8", "0", "0", "12.0", "0.00")
    ]


def _absent():
    raise ImportError("no compiler")
