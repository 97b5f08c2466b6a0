"""A bench that is killed, started twice, or cannot write loses no row, and reports the reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver, process
from multiprocessing.connection import arbitrary_address
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench import runner
from bpfree.bench.__main__ import main
from bpfree.bench.config import cells as configured
from bpfree.bench.results import Results
from bpfree.bench.runner import run
from tests.bench.report.test_page import as_nobody
from tests.bench.rows import row
from tests.workers import start_command

CONFIG: dict[str, Any] = {
    "name": "short",
    "dataset": {"name": "digits", "train_size": 100},
    "net": {"name": "mlp", "hidden": [8]},
    "fit": {"epochs": 1, "batch_size": 50},
    "trainer": {"id": "backprop"},
    "seeds": list(range(40)),
}


#: A plugin, which the bench and each of its cells run: they may write no file of more than so many bytes.
LIMIT = """
import pathlib, resource
room = pathlib.Path(__file__).with_name("room")
if room.exists():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room.read_text()),) * 2)
"""


def write(config: dict[str, Any], out: Path) -> list[str]:
    """The arguments of a command that runs a bench in ``out``."""
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config))
    return ["run", str(path), "--out", str(out)]


def start(config: dict[str, Any], out: Path) -> BaseProcess:
    """A bench of its own; what it says is in ``out``.log."""
    return start_command(main, write(config, out), out.with_suffix(".log"))


def start_anew(config: dict[str, Any], out: Path) -> subprocess.Popen[bytes]:
    """The same by a new interpreter: its cells are in its session."""
    command = [sys.executable, "-m", "bpfree.bench", *write(config, out)]
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not get {lines} lines")


def test_killed_between_and_amid_cells_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    """The long version, twenty random moments, is `benchmarks/robustness/kill_rows.py`."""
    out, seen = tmp_path / "out", b""
    for kill in range(3):
        # The first kill takes the cells along; the others leave them to notice that they are alone.
        process = start_anew(CONFIG, out) if kill == 0 else start(CONFIG, out)
        wait_for(out / "results.jsonl", seen.count(b"\n") + 2 + kill)
        time.sleep(0.07 * kill)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait() if isinstance(process, subprocess.Popen) else process.join()
        content = (out / "results.jsonl").read_bytes()
        assert content.startswith(seen)
        seen = content[: content.rfind(b"\n") + 1]
        cells = [json.loads(line)["cell_id"] for line in seen.splitlines()]
        assert len(cells) == len(set(cells))
    config = {**CONFIG, "seeds": CONFIG["seeds"][: len(cells) + 1]}
    # By the server that runs already: another start of the command line takes longer than the cells.
    run(configured(config), Results(out))
    rows = Results(out).read()
    assert (out / "results.jsonl").read_bytes().startswith(seen)
    assert len(Results(out).done()) == len(rows) >= len(config["seeds"])


def test_a_second_bench_on_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = {**CONFIG, "seeds": CONFIG["seeds"][:6]}
    first = start(config, out)
    assert first.pid is not None
    wait_for(out / "results.jsonl", 1)
    # The first must be at work for as long as the second takes.
    os.kill(first.pid, signal.SIGSTOP)
    code, second = main(write(config, out)), capsys.readouterr()
    os.kill(first.pid, signal.SIGCONT)
    assert code == 2
    assert second.err == f"error: {out}: another bench is writing there; wait for it or name another --out\n"
    first.join(timeout=120)
    assert first.exitcode == 0
    rows = Results(out).read()
    assert sorted(one["seed"] for one in rows) == config["seeds"]


@pytest.mark.parametrize("room", ["for half a row", "for no weights"])
def test_a_full_disk_is_a_clear_error_and_earlier_rows_stay(room: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = Results(out)
    with results.writing():
        for seed in range(20):
            results.append(row("mono_forward", seed))
    before = results.path.read_bytes()
    plugin = tmp_path / "limit.py"
    plugin.write_text(LIMIT)
    (tmp_path / "room").write_text(str(1024 * (len(before) // 1024 + 1)))
    net = {"name": "mlp", "hidden": [8 if room == "for half a row" else 2000]}
    config = {**CONFIG, "net": net, "seeds": [0], "plugins": [str(plugin)]}
    process = start(config, out)
    process.join(timeout=120)
    assert process.exitcode == 2
    told = out.with_suffix(".log").read_text()
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in told
    expected = "cannot write results there" if room == "for half a row" else ".safetensors: cannot be written"
    assert expected in last
    assert results.path.read_bytes() == before
    assert not list(out.rglob("*.partial"))
    # With room again the same command goes on.
    (tmp_path / "room").unlink()
    process = start(config, out)
    process.join(timeout=120)
    assert process.exitcode == 0
    assert results.path.read_bytes().startswith(before) and len(results.read()) == 21


def test_a_read_only_folder_is_a_clear_error_and_its_rows_can_be_read(tmp_path: Path) -> None:
    results = Results(tmp_path / "out")
    with results.writing():
        results.append(row("backprop", 0))
    # Whoever is not root must come as far as the folder.
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    (tmp_path / "out" / ".lock").unlink(missing_ok=True)
    (tmp_path / "out").chmod(0o555)
    with as_nobody():
        assert len(results.read()) == 1
        with pytest.raises(BadValue, match="cannot write results there"), results.writing():
            pass
    (tmp_path / "out").chmod(0o755)
    assert len(results.read()) == 1


def test_a_temporary_folder_of_a_long_name_is_not_used_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(process.current_process(), "_config", {})
    runner._shorten_temporary_folder()
    address = arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
    assert tempfile.gettempdir() == str(long) and len(os.fsencode(address)) < 104


def test_processes_that_cannot_be_started_are_not_reported_as_an_error_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(forkserver, "ensure_running", fail)
    with pytest.raises(BadValue, match=r"cannot be started, .*: too many open files"):
        run(configured(CONFIG, 1), Results(tmp_path))
