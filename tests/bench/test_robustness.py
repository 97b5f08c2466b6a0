"""A bench that is killed, doubled, out of disk or out of rights loses no row, and says what is wrong."""

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
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench import runner
from bpfree.bench.config import cells as configured
from bpfree.bench.results import Results
from bpfree.bench.runner import run
from tests.bench.report.test_page import as_nobody
from tests.bench.rows import row

CONFIG: dict[str, Any] = {
    "name": "short",
    "dataset": {"name": "digits", "train_size": 100},
    "net": {"name": "mlp", "hidden": [8]},
    "fit": {"epochs": 1, "batch_size": 50},
    "trainer": {"id": "backprop"},
    "seeds": list(range(40)),
}


def start(config: dict[str, Any], out: Path, most_kib: int | None = None) -> subprocess.Popen[str]:
    """A bench of its own, that may write no file of more than so many KiB; what it says is in ``out``.log."""
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config))
    command, env = [sys.executable, "-m", "bpfree.bench", "run", str(path), "--out", str(out)], {**os.environ}
    if most_kib is not None:
        command = ["bash", "-c", f'ulimit -f {most_kib}; exec "$@"', "bash", *command]
        env.pop("COVERAGE_PROCESS_CONFIG", None)  # the files of coverage.py are larger than that
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True, env=env)


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not get {lines} lines")


def test_killed_between_and_amid_cells_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    """The long version, twenty random moments, is `benchmarks/kill_rows.py`."""
    out, seen = tmp_path / "out", b""
    for kill in range(3):
        process = start(CONFIG, out)
        wait_for(out / "results.jsonl", seen.count(b"\n") + 2 + kill)
        time.sleep(0.07 * kill)
        # The first kill takes the cells along; the others leave them to notice that they are alone.
        (os.killpg if kill == 0 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
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


def test_a_second_bench_on_the_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = {**CONFIG, "seeds": CONFIG["seeds"][:6]}
    first = start(config, out)
    wait_for(out / "results.jsonl", 1)
    # The first must be at work for as long as the second takes to come up.
    os.kill(first.pid, signal.SIGSTOP)
    command = [sys.executable, "-m", "bpfree.bench", "run", str(out.with_suffix(".json")), "--out", str(out)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert (
        second.stderr == f"error: {out}: another bench is writing there; wait for it or name another --out\n"
    )
    assert first.wait(timeout=120) == 0
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
    net = {"name": "mlp", "hidden": [8 if room == "for half a row" else 2000]}
    process = start({**CONFIG, "net": net, "seeds": [0]}, out, most_kib=len(before) // 1024 + 1)
    assert process.wait(timeout=120) == 2
    told = out.with_suffix(".log").read_text()
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in told
    expected = "cannot write results there" if room == "for half a row" else ".safetensors: cannot be written"
    assert expected in last
    assert results.path.read_bytes() == before
    assert not list(out.rglob("*.partial"))
    # With room again the same command goes on.
    assert start({**CONFIG, "net": net, "seeds": [0]}, out).wait(timeout=120) == 0
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


def test_processes_that_cannot_be_started_are_not_the_fault_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(forkserver, "ensure_running", fail)
    with pytest.raises(BadValue, match=r"cannot be started, .*: too many open files"):
        run(configured(CONFIG, 1), Results(tmp_path))
