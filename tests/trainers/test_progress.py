"""The progress bar, and the rows of a history."""

from __future__ import annotations

from typing import Any

import pytest

from bpfree import History, Hooks, MonoForward
from bpfree.trainers.progress import progress_bar
from tests.helpers import make_mlp, vectors


def test_without_progress_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_bar_shows_losses_and_the_first_accuracy() -> None:
    from rich.progress import Progress

    notes: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "update", lambda self, task, **fields: notes.append(fields))
        with progress_bar("title", True) as show:
            show(1, 4, {"loss": [0.25, 0.5]})
            show(2, 4, {"loss": [0.1], "validation": {"last": 0.5, "sum": 0.1}})
    assert notes == [
        {"completed": 1, "total": 4, "note": "loss 0.7500"},
        {"completed": 2, "total": 4, "note": "loss 0.1000  validation 50.00 % (last)"},
    ]


def test_epochs_of_all_stages_are_counted() -> None:
    calls: list[tuple[int, int]] = []
    trainer = MonoForward(make_mlp(), schedule="greedy", progress=False)
    trainer.fit(
        vectors(), epochs=2, hooks=Hooks(progress=lambda done, total, row: calls.append((done, total)))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_curve_has_the_epochs_with_an_evaluation() -> None:
    rows = [{"step": 3}, {"step": 6, "validation": {"last": 0.5}}, {"step": 9, "validation": {"sum": 0.25}}]
    history = History(rows)
    assert history.curve("last") == [(6, 0.5)]
    assert history.curve("sum") == [(9, 0.25)]
    assert history.curve("none") == []
