"""The cases of the golden sets, discovered from their manifests.

A set is a folder with a ``manifest.json`` that lists its files under ``entries`` or ``cases``. The
environment variable ``ADAMW_JAX_GOLDEN`` names a set, or a folder of sets, to test in place of the
project's own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OWN_SETS = Path(__file__).parent / "golden"
VARIABLE = "ADAMW_JAX_GOLDEN"
MANIFEST = "manifest.json"


AVERAGES = ("slow", "avg")
"""Kinds of recorded weights that ``eval_params`` gives."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One recorded trajectory, schedule or result.

    Attributes:
      folder: the set it belongs to.
      entry: its entry in the manifest.
    """

    folder: Path
    entry: dict[str, Any]

    def changed(self, **entry: Any) -> Case:
        """The case with other entries, of the same arrays."""
        other = dataclasses.replace(self, entry={**self.entry, **entry})
        other.__dict__.update(arrays=self.arrays)
        return other

    @property
    def name(self) -> str:
        return self.entry["name"] if "name" in self.entry else self.entry["id"]

    @property
    def label(self) -> str:
        return f"{self.folder.name}-{self.name}"

    @property
    def system(self) -> str:
        return self.entry["system"]

    @property
    def source(self) -> str:
        """Short name of whose code was run; "" in the sets that do not say."""
        return self.entry.get("source_key", "")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.entry.get("hyperparameters", {}))

    @property
    def says(self) -> str:
        """What the manifest tells in words: the role of the case and its notes."""
        return f"{self.entry.get('role', '')}. {self.entry.get('notes', '')}"

    @property
    def is_negative(self) -> bool:
        """Whether it records a mistake, which must not be reproduced."""
        return self.entry.get("role", "").startswith("negative")

    @property
    def leaves(self) -> list[str]:
        recorded = (re.fullmatch(r"params_0_(\w+)", name) for name in self.arrays)
        return list(self.entry.get("leaves") or (found[1] for found in recorded if found))

    @property
    def steps(self) -> int:
        return len(self.arrays[f"grads_{self.leaves[0]}"])

    @property
    def tolerance(self) -> tuple[float, float]:
        """rtol and atol in float64."""
        stated = self.entry.get("tolerance")
        if stated is not None:
            end = "" if "rtol" in stated else "_f64"
            return stated[f"rtol{end}"], stated[f"atol{end}"]
        return self.entry["suggested_rtol"], self.entry["suggested_atol"]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays, all that the manifest promises."""
        with np.load(self.folder / self.entry["file"], allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        missing = set(self.entry.get("arrays", ())) - set(arrays)
        assert not missing, f"{self.label}: the file lacks {sorted(missing)}"
        return arrays

    @property
    def reference(self) -> dict[str, np.ndarray]:
        """What is to be reproduced: parameters after every step, and averages where there are.

        Before there is an average, where the source has NaN, it is the parameters.
        """
        names = [f"{kind}_{leaf}" for kind in ("params", *AVERAGES) for leaf in self.leaves]
        found = {name: self.arrays[name] for name in names if name in self.arrays}
        lacking = [leaf for leaf in self.leaves if f"params_{leaf}" not in found]
        assert not lacking, f"{self.label}: the file lacks the parameters {lacking}"
        for name, array in found.items():
            params = found[f"params_{name.partition('_')[2]}"]
            found[name] = np.where(np.isnan(array), params, array)
        return found


def find_sets(where: Path) -> list[Path]:
    """The sets in a folder: itself, or those below it."""
    if (where / MANIFEST).is_file():
        return [where]
    return sorted(manifest.parent for manifest in where.rglob(MANIFEST))


def discover(where: Path) -> list[Case]:
    """Every case of the sets in a folder."""
    cases = []
    for folder in find_sets(where):
        manifest = json.loads((folder / MANIFEST).read_text())
        kind = "entries" if "entries" in manifest else "cases"
        cases += [Case(folder, entry) for entry in manifest[kind]]
    return cases


def require_cases(cases: Sequence[Case], where: Path) -> None:
    """Fails where there is nothing to test, or a set or a file is missing."""
    assert cases, f"no golden case in {where}: it must hold a {MANIFEST}, or folders with one"
    for folder in find_sets(where):
        mine = [case for case in cases if case.folder == folder]
        assert mine, f"{folder / MANIFEST} lists no case"
        listed = json.loads((folder / MANIFEST).read_text()).get("count", len(mine))
        assert listed == len(mine), f"{folder / MANIFEST} promises {listed} cases, has {len(mine)}"
    lost = [case.label for case in cases if not (case.folder / case.entry["file"]).is_file()]
    assert not lost, f"the files of these cases are missing: {lost}"


def assert_arrays(case: Case, got: Mapping[str, Any]) -> None:
    """Arrays computed under the names of the recorded ones equal those, at the case's tolerance."""
    assert got, f"{case.label}: nothing was compared"
    rtol, atol = case.tolerance
    for name, array in got.items():
        np.testing.assert_allclose(array, case.arrays[name], rtol=rtol, atol=atol, err_msg=name)


def assert_recorded(case: Case, got: Mapping[str, Any], *others: str) -> None:
    """What is computed equals every result in the file, under ``out__`` and its name.

    A file may lack some of them; what it has beyond them must be named among ``others``.
    """
    results = {f"out__{name}": array for name, array in got.items()}
    recorded = {name for name in case.arrays if name.startswith("out__")}
    unknown = sorted(recorded - set(results) - set(others))
    assert not unknown, f"{case.label}: nothing computes the results {unknown}"
    assert_arrays(case, {name: results[name] for name in recorded & set(results)})


WHERE = Path(os.environ.get(VARIABLE) or OWN_SETS).expanduser()
CASES = discover(WHERE)
"""What is tested."""
