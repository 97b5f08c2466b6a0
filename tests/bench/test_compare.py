"""The comparison of two results, and its exit code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bpfree import BadValue
from bpfree.bench.__main__ import main
from bpfree.bench.compare import changes
from tests.bench.rows import Row, arm, row

BEFORE = [0.95, 0.951, 0.952, 0.9505, 0.9515]


def shifted(by: float) -> list[float]:
    return [value + by + wobble for value, wobble in zip(BEFORE, (1e-5, -1e-5, 0, 2e-5, -2e-5), strict=True)]


def test_what_is_the_same_is_no_change() -> None:
    found = changes(arm("mono_forward", BEFORE), arm("mono_forward", BEFORE))
    assert {c.measure.id for c in found.comparisons} >= {"accuracy", "train_s", "step_flops", "saved_bytes"}
    assert all(c.effect.exact and c.effect.p_different == 1 for c in found.comparisons)
    assert (found.worse, found.missing, found.new, found.notes, found.exit_code) == ([], [], [], [], 0)


@pytest.mark.parametrize(("by", "code"), [(-0.01, 1), (0.01, 0), (-0.0005, 0)])
def test_only_what_is_worse_by_more_than_the_margin_fails(by: float, code: int) -> None:
    found = changes(arm("mono_forward", BEFORE), arm("mono_forward", shifted(by)))
    assert found.exit_code == code
    assert [c.measure.id for c in found.worse] == ["accuracy"] * code


def test_more_memory_is_worse_and_less_is_not() -> None:
    before = arm("mono_forward", BEFORE, memory__saved_bytes=1000)
    assert changes(before, arm("mono_forward", BEFORE, memory__saved_bytes=1200)).exit_code == 1
    assert changes(before, arm("mono_forward", BEFORE, memory__saved_bytes=800)).exit_code == 0


def test_a_seed_that_is_gone_is_missing_with_its_reason() -> None:
    after: list[Row] = arm("mono_forward", BEFORE)[:4]
    found = changes(arm("mono_forward", BEFORE), after)
    assert found.missing == ["digits, mlp hidden 32-16, fixed epochs: mono_forward, seed 4: no row"]
    after.append(row("mono_forward", 4, status="oom", reason="no memory"))
    found = changes(arm("mono_forward", BEFORE), after)
    assert found.missing[0].endswith("seed 4: oom: no memory")
    assert found.exit_code == 1


def test_new_arms_are_listed_and_other_settings_noted() -> None:
    after = arm("mono_forward", BEFORE, config__trainer__lr=0.2) + arm("cafo", BEFORE)
    found = changes(arm("mono_forward", BEFORE), after)
    assert found.new == ["digits, mlp hidden 32-16, fixed epochs: cafo"]
    assert "mono_forward has other settings now: trainer.lr=0.2" in found.notes[0]
    assert found.exit_code == 0


def test_times_of_other_machines_are_not_compared() -> None:
    slow = arm("mono_forward", BEFORE, time__train_s=9.0)
    assert changes(arm("mono_forward", BEFORE), slow).exit_code == 1
    elsewhere = changes(
        arm("mono_forward", BEFORE), arm("mono_forward", BEFORE, time__train_s=9.0, env__cpu="Another")
    )
    assert "train_s" not in {c.measure.id for c in elsewhere.comparisons}
    assert "not compared in training time for 5 of 5 seeds, the machine differs" in elsewhere.notes[0]
    assert elsewhere.exit_code == 0


def test_versions_are_what_is_compared() -> None:
    after = arm("mono_forward", BEFORE, time__train_s=9.0, env__source="cd", env__torch="2.12")
    found = changes(arm("mono_forward", BEFORE), after)
    assert [c.measure.id for c in found.worse] == ["train_s"] and found.notes == []


def test_one_seed_on_another_machine_leaves_the_others() -> None:
    before, after = arm("mono_forward", BEFORE), arm("mono_forward", BEFORE, time__train_s=4.0)
    after[0]["env"]["cpu"] = "Another"
    found = {c.measure.id: c.effect for c in changes(before, after).comparisons}
    assert (found["train_s"].n, found["train_s"].value) == (4, pytest.approx(2.0))
    assert found["accuracy"].n == 5


def test_the_baseline_of_matched_passes_is_compared_once() -> None:
    own = {"config__fit__patience": 3}
    rows = arm("backprop", BEFORE, **own) + arm("mono_forward", BEFORE, **own)
    rows += arm("mono_forward", BEFORE, protocol={"id": "B", "matched_passes": 7})
    found = changes(rows, rows)
    accuracies = [(c.group.rsplit(", ")[-1], c.arm) for c in found.comparisons if c.measure.id == "accuracy"]
    assert sorted(accuracies) == [
        ("matched passes", "mono_forward"),
        ("own convergence", "backprop"),
        ("own convergence", "mono_forward"),
    ]


def test_nothing_in_common_is_a_mistake() -> None:
    with pytest.raises(BadValue, match="no arm with a common seed"):
        changes(arm("mono_forward", BEFORE), arm("cafo", BEFORE))


def test_the_command_line_gives_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, by in (("before", 0.0), ("better", 0.01), ("worse", -0.01)):
        (tmp_path / name).mkdir()
        lines = [json.dumps(one) + "\n" for one in arm("mono_forward", shifted(by))]
        (tmp_path / name / "results.jsonl").write_text("".join(lines))
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "better")]) == 0
    assert "worse: nothing" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "worse")]) == 1
    printed = capsys.readouterr().out
    assert "-1.00" in printed and "worse: mono_forward in test accuracy" in printed
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_compressed_rows_give_the_same_comparison_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = tmp_path / "after"
    after.mkdir()
    lines = "".join(json.dumps(one) + "\n" for one in arm("mono_forward", shifted(-0.01)))
    before = tmp_path / "before"
    before.mkdir()
    (before / "results.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in arm("mono_forward", BEFORE))
    )
    printed, pages = [], []
    for name, content in (
        ("results.jsonl", lines.encode()),
        ("results.jsonl.gz", gzip.compress(lines.encode())),
    ):
        (after / name).write_bytes(content)
        assert main(["compare", str(before), str(after)]) == 1
        assert main(["report", str(after)]) == 0
        printed.append(capsys.readouterr().out)
        pages.append((after / "report.html").read_text())
        (after / name).unlink()
    assert printed[0] == printed[1] and "worse: mono_forward" in printed[0]
    assert pages[0] == pages[1]
