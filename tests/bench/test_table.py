"""The table in the terminal: no number is cut, and names are printed without markup."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bpfree import BadValue
from bpfree.bench.__main__ import main
from bpfree.bench.compare import changes
from bpfree.bench.compare import show as show_changes
from bpfree.bench.report import html
from bpfree.bench.results import Results
from bpfree.bench.table import show
from bpfree.bench.terminal import console, visible
from tests.bench.rows import Row, arm, row

GOOD = [0.95, 0.951, 0.952, 0.9505, 0.9515]
BAD = [0.90, 0.902, 0.901, 0.9015, 0.9005]
READOUTS = {"last": 0.9, "sum": 0.91, "sum_probabilities": 0.92}


def printed(rows: list[Row], width: int = 180) -> str:
    file = io.StringIO()
    show(rows, Console(file=file, width=width))  # a console that would take markup
    return file.getvalue()


def rows(**changes: Any) -> list[Row]:
    own: dict[str, Any] = {"metrics__readouts": READOUTS, **changes}
    return arm("backprop", GOOD, **own) + arm(
        "mono_forward", BAD, "mono_forward with a name that is long", **own
    )


@pytest.mark.parametrize("width", [60, 70, 80, 100, 132, 180])
def test_nothing_is_cut(width: int) -> None:
    text = printed(rows(), width)
    assert "…" not in text
    tables = text.partition("Backpropagation is")[0].splitlines()
    assert max(map(len, tables)) <= width
    for figure in ("95.10 ± 0.10", "90.10 ± 0.10", "-5.00 [-5.12, -4.88] ≠"):
        assert figure in text
    assert width < 70 or "sum_probabilities 92.00 ± 0.00" in text


def test_a_wide_terminal_has_one_table() -> None:
    assert printed(rows(), 200).count("┏") == 1 and printed(rows(), 80).count("┏") > 1


def test_square_brackets_are_text() -> None:
    found = printed(
        arm("backprop", GOOD)
        + arm("backprop", BAD, config__trainer__lr=0.05)
        + arm("cafo", BAD, "[bold]x[/bold] :smile:")
    )
    assert "backprop [trainer.lr=0.05]" in found and "[bold]x[/bold] :smile:" in found


def test_a_reason_with_brackets_does_not_end_the_table() -> None:
    failed = row("cafo", 0, "[/b]", status="error", reason="KeyError: [/trainer.lr] not in\n[red]this")
    assert "error [/b], seed 0: [red]this" in printed([*rows(), failed])


def test_changes_are_printed_as_text() -> None:
    file = io.StringIO()
    found = changes(
        arm("cafo", GOOD, "[/a]"),
        [*arm("cafo", BAD, "[/a]"), *arm("cafo", BAD, "[b]", config__trainer__lr=1)],
    )
    show_changes(found, Console(file=file, width=200))
    assert "[/a]" in file.getvalue() and "new: digits, mlp hidden 32-16, fixed epochs: [b]" in file.getvalue()


def test_control_characters_are_escaped_everywhere() -> None:
    name = "a\nb\x1b[31mc\ud800\u202ed"
    told = r"a\nb\x1b[31mc\ud800\u202ed"
    assert visible(name) == told
    found = rows() + arm("cafo", BAD, name) + [row("cafo", 9, name, status="error", reason=name)]
    for text in (printed(found), html(found)):
        assert told in text and not {"\x1b", "\ud800", "\u202e"} & set(text)


def test_arms_of_one_name_stay_apart() -> None:
    found = (
        arm("cafo", GOOD)
        + arm("cafo", BAD, config__trainer__lr=0.05)
        + arm("cafo", GOOD, "cafo [trainer.lr=0.05]", config__trainer__lr=7)
    )
    text = printed(found)
    assert "cafo [trainer.lr=0.05] (2)" in text


def test_no_common_seed_is_no_win() -> None:
    text = printed([*arm("backprop", GOOD), row("mono_forward", 9)])
    assert "any of them: no seed in common" in text and "more accurate than" not in text
    assert "no seed in common (mono_forward has 9; backprop has 0, 1, 2, 3, 4)" in text


def folder(path: Path, found: list[Row]) -> Path:
    results = Results(path)
    with results.writing():
        for one in found:
            results.append(one)
    return path


def report(
    *paths: Path, env: dict[str, str] | None = None, pipe: str = ""
) -> subprocess.CompletedProcess[bytes]:
    command = f'"$0" -m bpfree.bench report "$@" {pipe}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *map(str, paths)],
        capture_output=True, env={**os.environ, **(env or {})}, timeout=120, check=False,
    )  # fmt: skip


def test_a_closed_pipe_loses_no_page_and_ascii_is_enough(tmp_path: Path) -> None:
    path = folder(tmp_path / "a [b]\nc", rows())
    done = report(path, env={"PYTHONIOENCODING": "ascii"}, pipe="| head -n 1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (path / "report.html").exists() and done.stdout.count(b"\n") == 1
    done.stdout.decode("ascii")


def test_a_pattern_that_names_other_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folder(tmp_path / "a", rows()), folder(tmp_path / "b", rows()[:3] + arm("cafo", BAD))
    (tmp_path / "x.json").write_text("{}")
    assert main(["report", *map(str, (tmp_path / "x.json", a, b))]) == 0
    said = capsys.readouterr().out
    assert f"skipped, as they have no results of a bench: {tmp_path / 'x.json'}" in said
    assert f"3 cells of {b} are in {a} as well and are read from there" in said
    assert (a / "report.html").exists()
    assert main(["report", str(a), str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path / "x.json")]) == 2
    assert main(["report", str(a), str(a)]) == 2


def test_a_row_without_its_figures_is_refused(tmp_path: Path) -> None:
    bad = row("cafo", 0)
    del bad["metrics"]
    with pytest.raises(BadValue, match="has no metrics"):
        from bpfree.bench.results import read_all

        read_all([folder(tmp_path, [bad])])


def test_all_rows_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path, [row("cafo", 0, status="error", reason="[/x]")])
    assert main(["report", str(path)]) == 2
    caught = capsys.readouterr()
    assert "error cafo, seed 0: [/x]" in caught.out and "no row of this result succeeded" in caught.err


def test_what_a_stream_cannot_encode_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console().print("1 ± 2 ÷ 3 – 4 ≠ 5 ü \udc80")
    sys.stdout.flush()
    assert raw.getvalue() == b"1 +- 2 / 3 - 4 != 5 \\xfc \\udc80\n"
