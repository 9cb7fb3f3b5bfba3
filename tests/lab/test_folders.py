"""Folders of results: one writer, nothing lost, damage named in one line."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from adamw_jax.lab.cli import main
from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.folders import Interrupted, chosen_folder, open_folder
from adamw_jax.lab.logs import LiveLog, Logged, read_log
from adamw_jax.lab.report import build

pytestmark = pytest.mark.quick


def fill(folder, text="old"):
    with open_folder(folder) as place:
        (place / "run.json").write_text(text, "utf-8")
        (place / "logs").mkdir()


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_a_folder_is_not_overwritten_silently(tmp_path):
    fill(tmp_path / "new")
    with (
        pytest.raises(ValueError, match=r"is not empty: .*--out.*--resume.*--overwrite"),
        open_folder(tmp_path / "new"),
    ):
        pass
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("", "utf-8")
    for options in ({"overwrite": True}, {"resume": True}):
        with (
            pytest.raises(ValueError, match=r"but no (earlier )?results"),
            open_folder(tmp_path / "foreign", **options),
        ):
            pass
    assert names(tmp_path / "foreign") == {"thesis.txt"}


def test_old_results_stay_until_the_new_ones_are_whole(tmp_path):
    folder = tmp_path / "results"
    fill(folder)
    (folder / "mine.txt").write_text("kept", "utf-8")

    def interrupted():
        with open_folder(folder, overwrite=True) as place:
            (place / "run.json").write_text("half", "utf-8")
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"--resume --out"):
        interrupted()
    assert (folder / "run.json").read_text("utf-8") == "old"
    with open_folder(folder, resume=True) as place:  # goes on with the new ones
        assert (place / "run.json").read_text("utf-8") == "half"
        (place / "run.json").write_text("new", "utf-8")
    assert (folder / "run.json").read_text("utf-8") == "new"
    assert names(folder) == {"run.json", "mine.txt"}


def test_two_processes_cannot_write_one_folder(tmp_path):
    code = (
        "import sys, pathlib; from adamw_jax.lab.folders import open_folder\n"
        "try:\n    with open_folder(pathlib.Path(sys.argv[1]), resume=True): print('got it')\n"
        "except ValueError as error: print(error)"
    )
    with open_folder(tmp_path / "shared"):
        said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "shared")],
                              capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert "is being written by another process" in said
    with open_folder(tmp_path / "shared"):  # the lock is free again
        pass


def test_default_folders_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({chosen_folder(None, "demo", False) for _ in range(3)}) == 3
    assert chosen_folder(tmp_path, "demo", True) == tmp_path
    with pytest.raises(ValueError, match="--resume needs the folder"):
        chosen_folder(None, "demo", True)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_read_only_folder_is_one_line(tmp_path):
    """In a child, which gives up the rights of root, who may write anywhere."""
    script = """if True:
        import os, sys
        from adamw_jax.lab.cli import main
        run = ["run", "reddi", "--preset", "tiny", "--out"]
        assert main([*run, sys.argv[1]]) == 0  # so that all is imported
        if os.getuid() == 0:
            os.setuid(65534)
        sys.exit(main([*run, sys.argv[2]]))
        """
    with tempfile.TemporaryDirectory() as parent:  # that of pytest is closed to other users
        folder = pathlib.Path(parent) / "results"
        folder.mkdir(mode=0o555)
        folder.parent.chmod(0o755)
        command = [sys.executable, "-c", script, str(tmp_path / "good"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not list(folder.iterdir())
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot write results into .*\n", done.stderr)


def test_what_is_no_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("", "utf-8")
    assert main(["run", "reddi", "--preset", "tiny", "--out", str(tmp_path / "file" / "x")]) == 2
    assert re.fullmatch(r"error: cannot write results into .*\n", capsys.readouterr().err)


@contextlib.contextmanager
def full_after(size):
    """Let the system refuse what makes a file longer than so many bytes, as a full disk does."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(tmp_path, capsys):
    with full_after(100):
        assert main(["run", "reddi", "--preset", "tiny", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: cannot use .*run\.json: File too large.*\n", said)


REDDI = get_experiment("reddi")


def log_of(rows=()):
    return Logged(REDDI, "tiny", REDDI.settings("tiny"), 0.0, list(rows))


def test_a_live_log_has_every_row_at_once_and_goes_on(tmp_path):
    log = LiveLog(tmp_path, log_of(), resume=False)
    log.add([{"x": 1.5, "name": "a"}])
    log.add([{"x": 2.5, "name": "b,c"}, {"x": None, "name": "d", "late": 1}])
    table = (tmp_path / "reddi.csv").read_text("utf-8").splitlines()
    assert table == ["x,name,late", "1.5,a,", '2.5,"b,c",', ",d,1"]
    with open(tmp_path / "reddi.jsonl", "a", encoding="utf-8") as file:
        file.write('{"x": 3.')  # the process was killed while it wrote
    again = LiveLog(tmp_path, log_of(), resume=True)
    assert [row["name"] for row in again.rows] == ["a", "b,c", "d"]
    assert not read_log(tmp_path, "reddi").finished
    again.finish(again.rows, 2.0)
    assert read_log(tmp_path, "reddi").finished
    with pytest.raises(ValueError, match=r"other settings \(.* there, .* now\)"):
        LiveLog(tmp_path, Logged(REDDI, "demo", REDDI.settings("demo"), 0.0, []), resume=True)


def test_a_disk_that_fills_up_meanwhile_loses_no_row(tmp_path):
    """The row that was cut is left out; what was written before goes on."""
    log = LiveLog(tmp_path, log_of(), resume=False)
    log.add([{"x": 1}])
    written = (tmp_path / "reddi.jsonl").stat().st_size
    with full_after(written + 4), pytest.raises(OSError, match=r"File too large.*reddi\.jsonl"):
        log.add([{"x": 2}])
    assert (tmp_path / "reddi.jsonl").stat().st_size == written + 4
    assert log.rows == [{"x": 1}, {"x": 2}]
    assert LiveLog(tmp_path, log_of(), resume=True).rows == [{"x": 1}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "results"
    assert main(["run", "reddi", "--preset", "tiny", "--out", str(folder)]) == 0
    return folder


def edit(name, change):
    def damage(folder):
        path = folder / name
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(change(content)), "utf-8")

    return damage


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text, "utf-8")


def without(key):
    return lambda content: {k: v for k, v in content.items() if k != key}


RUN, HEAD, ROWS = "run.json", "logs/reddi.json", "logs/reddi.jsonl"
DAMAGE = {
    "run is a list": replaced(RUN, "[]"),
    "run is empty": replaced(RUN, "{}"),
    "run is cut": replaced(RUN, '{"title": '),
    "run nests": replaced(RUN, "[" * 100_000),
    **{f"run lacks {key}": edit(RUN, without(key)) for key in
       ("title", "command", "started", "seconds", "environment", "experiments")},
    "seconds are text": edit(RUN, lambda run: run | {"seconds": "high"}),
    "environment is empty": edit(RUN, lambda run: run | {"environment": {}}),
    "experiment is unknown": edit(RUN, lambda run: run | {"experiments": ["nothing"]}),
    "experiment is a number": edit(RUN, lambda run: run | {"experiments": [3]}),
    "head is a list": replaced(HEAD, "[]"),
    **{f"head lacks {key}": edit(HEAD, without(key)) for key in
       ("experiment", "preset", "settings", "settings_hash", "seconds", "rows_hash")},
    "a setting changed": edit(HEAD, lambda h: h | {"settings": h["settings"] | {"steps": 3}}),
    "a setting is text": edit(HEAD, lambda h: h | {"settings": h["settings"] | {"steps": "x"}}),
    "a setting is new": edit(HEAD, lambda h: h | {"settings": h["settings"] | {"speed": 3}}),
    "no rows": lambda folder: (folder / ROWS).unlink(),
    "a row is a number": replaced(ROWS, "3\n"),
    "a row is NaN": replaced(ROWS, '{"x": NaN}\n'),
    "a row lacks its keys": replaced(ROWS, "{}\n"),
    "rows are cut": replaced(ROWS, '{"x": 1'),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_damaged_folder_is_refused_in_one_line(kind, whole, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    DAMAGE[kind](folder)
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert re.fullmatch(r"error: [^\n]{10,300}\n", said.replace(str(folder), "results")), said


def test_an_unfinished_log_is_not_analysed(whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    edit(HEAD, without("rows"))(folder)
    (folder / ROWS).write_text("{}\n", "utf-8")
    with pytest.raises(ValueError, match="was interrupted: continue it with --resume"):
        build(folder)


def test_a_finished_experiment_is_not_measured_again(whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    before = (folder / ROWS).stat().st_mtime_ns
    assert main(["run", "reddi", "decay_scale", "--preset", "tiny", "--resume", "--out",
                 str(folder)]) == 0  # fmt: skip
    assert (folder / ROWS).stat().st_mtime_ns == before
    assert (folder / "logs" / "decay_scale.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "words"), [("ascii", ["--help"]), ("cp1252", ["report"])])
def test_output_that_is_not_utf_8_kills_nothing(encoding, words, whole):
    words = [*words, str(whole)] if words == ["report"] else words
    done = subprocess.run(
        [sys.executable, "-m", "adamw_jax.lab", *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    if words[0] == "report":
        assert b"report.html" in done.stdout
