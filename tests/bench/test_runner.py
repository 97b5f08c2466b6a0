"""Cells run in separate processes, rows are kept, and a killed run continues as if it had not been killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bpfree._errors import BadValue
from bpfree.bench import preload_graphs
from bpfree.bench.__main__ import main
from bpfree.bench.config import cells
from bpfree.bench.results import Results, comparable
from bpfree.bench.runner import Callbacks, run, start_server
from tests.helpers import heeding_interrupts
from tests.workers import start_command

CONFIG: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "augment": ["shift"]},
    "net": {"name": "mlp", "hidden": [32, 16], "dropout": 0.2},
    "fit": {"epochs": 3, "batch_size": 128},
    "trainer": {"id": "mono_forward"},
    "controls": [
        {"trainer": {"id": "backprop"}},
        {"trainer": {"id": "forward_forward", "optimizer": "adam"}},
    ],
    "seeds": [0, 1],
}

GRAPH: dict[str, Any] = {
    "dataset": {"name": "digits_graph"},
    "net": {"name": "gcn", "hidden": [8]},
    "fit": {"epochs": 1, "batch_size": 2000},
    "trainer": {"id": "backprop_gnn"},
}

#: A rule that ends its process, or raises, or never converges.
PLUGIN = """
import os, signal, bpfree
from torch import nn

@bpfree.register_loss("dies")
class Dies(bpfree.LocalLoss):
    def build(self, output, n_classes):
        self.head = nn.Linear(output[0].numel(), n_classes)
    def scores(self, output):
        return self.head(output)
    def forward(self, output, target, lesson=None):
        match HOW if self.training else None:
            case 0: os.kill(os.getpid(), signal.SIGKILL)
            case 1: raise RuntimeError("this rule cannot work")
            case 2: return self.scores(output).sum() * float("nan")
        return self.scores(output).sum()
"""


def test_rows_have_all_measured_values(tmp_path: Path) -> None:
    finished: list[str] = []
    found = run(
        cells(CONFIG),
        Results(tmp_path),
        callbacks=Callbacks(finished=lambda cell, row: finished.append(cell.arm)),
    )
    order = ["mono_forward", "backprop", "forward_forward"]
    assert finished == order + order[::-1]
    assert found == Results(tmp_path).read()
    for row in found:
        assert row["status"] == "ok"
        assert {
            "schema",
            "cell_id",
            "seed",
            "locality",
            "config",
            "env",
            "git",
            "curve",
            "budget",
            "run_id",
            "protocol",
        } <= row.keys()
        assert {"encoding", "objective", "schedule", "readout"} <= row["method"].keys()
        assert {"saved_bytes", "params", "grads", "optim", "rss"} <= row["memory"].keys()
        assert 0 <= row["metrics"]["test_accuracy"] <= 1
        assert row["time"]["train_s"] > 0
        assert row["time"]["eval_s"] > 0
        assert row["memory"]["saved_bytes"] > 0
        assert row["flops"]["train_step"] > row["flops"]["infer"] > 0
        assert len(row["curve"]) == row["budget"]["passes"] == 3
        assert (tmp_path / "cells" / row["cell_id"] / "model.safetensors").exists()
        assert not (tmp_path / "cells" / row["cell_id"] / "checkpoint.safetensors").exists()


def test_flops_of_a_step_are_the_hand_count(tmp_path: Path) -> None:
    row = run(cells(CONFIG, seeds=1)[1:2], Results(tmp_path))[0]
    products = [(64, 32), (32, 16), (16, 10)]
    forward = sum(2 * 128 * a * b for a, b in products)
    # Backward: a product for each weight, and one for each input but the first.
    assert row["flops"]["train_step"] == 3 * forward - 2 * 128 * 64 * 32
    assert row["flops"]["infer"] == forward // 128


def test_the_same_cells_again_are_not_run_again(tmp_path: Path) -> None:
    some = cells(CONFIG)[:2]
    first = run(some, Results(tmp_path))
    started: list[str] = []
    again = run(
        cells(CONFIG)[:3],
        Results(tmp_path),
        callbacks=Callbacks(started=lambda cell: started.append(cell.arm)),
    )
    assert started == ["forward_forward"]
    assert again[:2] == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trainer": {"id": "local", "loss": "no_such_loss"}}, "no_such_loss"),
        ({"trainer": {"id": "mono_forward", "cut": "no_such_child"}}, "no_such_child"),
        ({"trainer": {"id": "forward_forward", "classifier": False}}, "classifier = false"),
    ],
)
def test_a_mistake_in_the_last_arm_is_found_before_the_first_trains(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    wrong = {"label": "the wrong arm", "trainer": {"id": "backprop"}, **change}
    with pytest.raises(BadValue, match=f"the wrong arm: .*{named}"):
        run(cells({**CONFIG, "controls": [*CONFIG["controls"], wrong]}), Results(tmp_path))
    assert not (tmp_path / "results.jsonl").exists()


def test_two_at_once_give_the_same_rows(tmp_path: Path) -> None:
    alone = run(cells(CONFIG), Results(tmp_path / "a"), jobs=1)
    together = run(cells(CONFIG), Results(tmp_path / "b"), jobs=2)
    assert [comparable(row) for row in alone] == [comparable(row) for row in together]


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        (0, "error", "killed by signal 9"),
        (1, "error", "this rule cannot work"),
        (2, "diverged", "became nan"),
    ],
)
def test_a_killed_cell_does_not_stop_the_others(how: int, status: str, reason: str, tmp_path: Path) -> None:
    plugin = tmp_path / "rule.py"
    plugin.write_text(PLUGIN.replace("HOW", str(how)))
    config = {**CONFIG, "plugins": [str(plugin)], "seeds": [0]}
    config["controls"] = [{"trainer": {"id": "local", "loss": "dies"}}, {"trainer": {"id": "backprop"}}]
    found = run(cells(config), Results(tmp_path / "out"))
    assert [row["status"] for row in found] == ["ok", status, "ok"]
    assert reason in found[1]["reason"]
    assert "metrics" not in found[1]


def test_a_cell_at_its_time_limit_has_a_row_and_stops_no_other(tmp_path: Path) -> None:
    config = {**CONFIG, "fit": {"epochs": 4000, "batch_size": 8}, "controls": [], "seeds": [0, 1]}
    begun = time.monotonic()
    found = run(cells(config), Results(tmp_path), limit_s=3.0)
    assert 6.0 <= time.monotonic() - begun < 30.0
    assert [row["status"] for row in found] == ["timeout"] * 2
    assert all(row["reason"] == "not done after 3 s" and "metrics" not in row for row in found)
    assert Results(tmp_path).done() == {}  # so the next command tries them again


def test_a_cell_without_a_graph_does_not_import_graph_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloads: list[list[str]] = []
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(type(context), "set_forkserver_preload", lambda _, names: preloads.append(names))
    plugin = tmp_path / "rule.py"
    in_cell = "multiprocessing.parent_process() is not None"
    plugin.write_text(
        f"import multiprocessing, sys\nassert not ({in_cell} and 'torch_geometric' in sys.modules)\n"
    )
    config = {**CONFIG, "plugins": [str(plugin)], "controls": [], "seeds": [0]}
    (row,) = run(cells(config), Results(tmp_path / "out"))
    assert row["status"] == "ok"
    start_server(cells({**CONFIG, **GRAPH, "controls": []}))
    assert ["bpfree.bench.preload_graphs" in names for names in preloads] == [False, True]
    assert preload_graphs.torch_geometric.nn and preload_graphs.torch_geometric.datasets


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """The long version, ten random moments, is `benchmarks/robustness/kill_resume.py`."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**CONFIG, "fit": {"epochs": 20, "batch_size": 32}, "seeds": [0]}))
    undisturbed = run(cells(json.loads(config.read_text())), Results(tmp_path / "calm"))
    out, kills = tmp_path / "killed", 0
    command = ["run", str(config), "--out", str(out), "--checkpoint-every", "0"]
    for _ in range(2):
        process = start_command(main, command, tmp_path / "log")
        deadline = time.monotonic() + 60
        before = sum(path.stat().st_mtime_ns for path in out.glob("cells/*/checkpoint.safetensors"))
        while time.monotonic() < deadline and process.is_alive():
            if sum(p.stat().st_mtime_ns for p in out.glob("cells/*/checkpoint.safetensors")) > before:
                break
            time.sleep(0.01)
        time.sleep(0.1)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert kills == 2
    resumed = run(cells(json.loads(config.read_text())), Results(out))
    assert any(row["segments"] > 1 for row in resumed)
    order = [row["cell_id"] for row in undisturbed]
    resumed.sort(key=lambda row: order.index(row["cell_id"]))
    assert [comparable(row) for row in resumed] == [comparable(row) for row in undisturbed]
    for cell_id in order:
        models = [tmp_path / name / "cells" / cell_id / "model.safetensors" for name in ("calm", "killed")]
        assert models[0].read_bytes() == models[1].read_bytes()


def test_the_command_line_prints_the_table_and_reports_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    assert (
        main(["run", str(config), "--seeds", "2", "--out", str(tmp_path / "out"), "--set", "fit.epochs=1"])
        == 0
    )
    printed = capsys.readouterr().out
    assert main(["report", str(tmp_path / "out")]) == 0
    again = capsys.readouterr().out
    table, _, path = again.partition("report: ")
    assert path.strip() == str(tmp_path / "out" / "report.html")
    assert table and printed.startswith(table)
    rows = Results(tmp_path / "out").read()
    mean = sum(row["metrics"]["test_accuracy"] for row in rows if row["arm"] == "backprop") / 2
    assert f"{100 * mean:.2f} ±" in printed
    assert "Backpropagation is more accurate than" in printed
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("forward_forward", "cifar100", "image_folder", "mlp", "cnn"))


def test_several_files_are_one_bench_and_what_they_share_runs_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**CONFIG, "trainer": {"id": "mf_joint"}, "controls": CONFIG["controls"]}
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, config in zip(paths, (CONFIG, other), strict=True):
        path.write_text(json.dumps(config))
    out = tmp_path / "out"
    assert main(["run", *map(str, paths), "--seeds", "1", "--out", str(out), "--set", "fit.epochs=1"]) == 0
    arms = [row["arm"] for row in Results(out).read()]
    shared = [control.get("label", control["trainer"]["id"]) for control in CONFIG["controls"]]
    assert arms == [CONFIG["trainer"]["id"], *shared, "mf_joint"]


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--jobs", "x"], ["run"], ["nothing"]])
def test_bad_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_ctrl_c_stops_quietly_and_the_rows_stay(tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(json.dumps({**CONFIG, "fit": {"epochs": 400, "batch_size": 8}}))
    command = [sys.executable, "-m", "bpfree.bench", "run", str(config), "--out", str(out)]
    with heeding_interrupts():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(out.glob("cells/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "continues from here" in printed
