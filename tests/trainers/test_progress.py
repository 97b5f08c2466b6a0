"""The progress bar, and what a history tells of a run."""

from __future__ import annotations

from typing import Any

import pytest

from bpfree import History, Hooks, MonoForward
from bpfree.trainers.progress import progress_bar
from tests.helpers import make_mlp, vectors


def test_a_silent_bar_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1)
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")


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
    seen: list[tuple[int, int]] = []
    trainer = MonoForward(make_mlp(), schedule="greedy", progress=False)
    trainer.fit(vectors(), epochs=2, hooks=Hooks(progress=lambda done, of, row: seen.append((done, of))))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_curve_is_drawn_from_the_epochs_that_were_evaluated() -> None:
    rows = [{"step": 3}, {"step": 6, "validation": {"last": 0.5}}, {"step": 9, "validation": {"sum": 0.25}}]
    history = History(rows)
    assert history.curve("last") == [(6, 0.5)]
    assert history.curve("sum") == [(9, 0.25)]
    assert history.curve("none") == []
