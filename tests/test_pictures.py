"""Every optimizer has a picture, and the checker finds what is missing."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="tools/ is not in the wheel")


@pytest.fixture
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", TOOLS / "optimizer_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pictures"] = module
    spec.loader.exec_module(module)
    return module


def test_pictures_agree_with_the_registry(pictures, capsys):
    assert pictures.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_missing_and_superfluous_pictures_are_found(pictures, tmp_path, monkeypatch, capsys):
    for path in pictures.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "adamw.png").rename(tmp_path / "adamzw.png")
    (tmp_path / "adam.png").write_bytes(b"GIF89a")
    numbers = tmp_path / "numbers.csv"
    text = numbers.read_text(encoding="utf-8").splitlines(keepends=True)
    numbers.write_text("".join(text[:-1]), encoding="utf-8")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(pictures, "NUMBERS", numbers)
    assert pictures.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "adamw: no picture" in said
    assert "adamzw: a picture of no optimizer" in said
    assert "adam: not a PNG" in said
    assert "numbers.csv: not one row per optimizer and valley" in said


def test_the_best_rate_is_the_one_with_the_least_loss_at_the_end(pictures):
    loss = np.ones((3, 2, 21))
    loss[0, :, -2:], loss[1, :, -2:], loss[2, 0, 4] = 0.5, 0.2, 0.0
    assert pictures.chosen(loss) == (1, pytest.approx(0.2))
    loss[1, 1, -1] = np.nan
    assert pictures.chosen(loss) == (0, pytest.approx(0.5))


@pytest.mark.parametrize("valley", ["rosenbrock", "noisy"])
def test_minima_are_where_the_stars_are(pictures, valley):
    function = pictures.rosenbrock if valley == "rosenbrock" else pictures.bowl
    best = np.asarray(pictures.BEST[valley], np.float32)
    value, slope = jax.value_and_grad(function)(best)
    assert value == 0
    assert not np.any(slope)
