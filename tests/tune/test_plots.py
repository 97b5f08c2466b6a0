"""Importances are given where they are known, and agree with the data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bpfree import BadValue
from bpfree.tune.__main__ import main
from bpfree.tune.plots import draw, importance, no_importance
from bpfree.tune.report import redraw, study_of
from bpfree.tune.study import ArmStudy
from bpfree.tune.summary import summarize, write_json
from tests.tune.common import arm_study, open_at, plan


def study(folder: Path, complete: int, constant: bool = False, **tune: object) -> ArmStudy:
    """Trials whose value follows from the learning rate alone, with some that were pruned."""
    found = arm_study(
        plan(**({"sampler": "random", "only": ["lr", "weight_decay"]} | tune)), open_at("journal", folder), 50
    )
    for number in range(complete + 4):
        trial = found.take()
        assert trial is not None
        if number % 4 == 0 and number < 16:
            trial.report(0.1, 1)
            found.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("cells", {})
            found.study.tell(trial, 0.5 if constant else trial.params["lr"])
    return found


def test_the_setting_that_matters_is_found_with_ten_trials(tmp_path: Path) -> None:
    found = study(tmp_path, 12)
    shares = importance(found)
    assert shares["lr"] > 0.75
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == importance(found)
    if int(optuna.__version__.split(".")[0]) >= 5:
        # Its default since then gives both much the same importance after ten trials.
        few = optuna.create_study(direction="maximize")
        few.add_trials([t for t in found.all() if t.state == TrialState.COMPLETE][:10])
        assert optuna.importance.get_param_importances(few)["lr"] < 0.75
    assert sorted(path.stem.split("_")[-1] for path in draw(found, tmp_path)) == [
        "history",
        "importance",
        "slice",
    ]


def test_an_unknown_importance_has_a_reason(tmp_path: Path) -> None:
    for folder, made, reason in (
        ("few", {"complete": 9}, "9 complete trials, at least 10 are needed"),
        ("constant", {"complete": 12, "constant": True}, "all complete trials have the same value"),
        ("one", {"complete": 12, "only": ["lr"]}, "fewer than two settings were searched"),
        (
            "fixed",
            {"complete": 12, "space": {"weight_decay": [1e-4]}},
            "fewer than two settings were searched",
        ),
    ):
        found = study(tmp_path / folder, **made)  # type: ignore[arg-type]
        assert (importance(found), no_importance(found)) == ({}, reason)


def test_trials_without_a_split_have_no_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(tmp_path, 12)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Encountered zero total variance in all trees.")

    monkeypatch.setattr(optuna.importance, "get_param_importances", fail)
    assert importance(found) == {}


SPACES: dict[str, dict[str, object]] = {
    "ranges": {"only": ["lr", "weight_decay"]},
    "a narrow range whose ends are rounded in the summary": {
        "space": {"lr": {"low": 0.012345651, "high": 0.012345659}}
    },
    "choices": {"only": ["lr", "weight_decay"], "space": {"lr": [0.01, 0.03], "weight_decay": [1e-5, 1e-4]}},
    "grid": {"sampler": "grid", "only": ["lr"], "space": {"lr": {"low": 1e-3, "high": 1e-1, "points": 18}}},
}


@pytest.mark.parametrize("space", SPACES)
def test_the_pictures_are_drawn_again_from_the_summary(
    space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = study(tmp_path, 12, **SPACES[space])
    drawn = draw(found, tmp_path / "first")
    summary = summarize(plan(**({"sampler": "random"} | SPACES[space])), [found])
    for arm in summary["arms"]:
        arm["importance"] = importance(found)
    write_json(tmp_path / "summary.json", summary)
    assert main(["report", str(tmp_path)]) == 0
    again = [tmp_path / "plots" / path.name for path in drawn]
    assert capsys.readouterr().out.splitlines() == list(map(str, again))
    assert [plain(path) for path in again] == [plain(path) for path in drawn]


def plain(svg: Path) -> str:
    """The content without identifiers, which differ each time."""
    return re.sub(r"(?:image|[mpCD])[0-9a-f_]*[0-9a-f]{10}\b", "id", svg.read_text())


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"schema": 2}', '{"schema": 1, "sampler": {"name": "tpe"}, "arms": [{}]}']
)
def test_a_folder_without_a_complete_summary_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(BadValue, match=r"summary.json: (cannot be read|is not)"):
        redraw(tmp_path)


def test_a_published_search_is_drawn_whole(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    folder = results / "tuning_mono_forward_mnist"
    if not folder.is_dir():
        pytest.skip("a source distribution has no results")
    named = [
        name for arm in json.loads((folder / "summary.json").read_text())["arms"] for name in arm["plots"]
    ]
    assert [f"plots/{path.name}" for path in redraw(folder, tmp_path)] == named


def test_a_smaller_error_is_the_better_one_when_drawn_again() -> None:
    arm = {"metric": "mse", "greater_is_better": False, "share": False, "space": {"lr": "0.1 to 1"}}
    history = [
        {"number": k, "state": "complete", "params": {"lr": 0.2 + k / 10}, "value": value}
        for k, value in enumerate((3.0, 1.0, 2.0))
    ]
    assert study_of({**arm, "history": history}, grid=False).best_value == 1.0
