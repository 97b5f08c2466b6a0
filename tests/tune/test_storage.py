"""Databases that several commands create at once, and their passwords."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from bpfree import BadValue
from bpfree.tune import storage as module
from bpfree.tune.storage import hide_password, open_storage
from tests.tune.common import arm_study, plan


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_searches_that_begin_at_once_share_the_study(kind: str, tmp_path: Path) -> None:
    made, errors, ready = plan(), list[BaseException](), threading.Barrier(4)
    url = None if kind == "journal" else f"sqlite:///{tmp_path}/study.db"

    def begin(number: int) -> None:
        folder = tmp_path if kind == "journal" else tmp_path / str(number)
        try:
            ready.wait()
            arm_study(made, open_storage(folder, url), 4).take()
        except BaseException as error:  # noqa: BLE001 # it would be lost with the thread
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [t.number for t in arm_study(made, open_storage(tmp_path, url), 4).all()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "text", "tries"),
    [
        (IntegrityError, "UNIQUE constraint failed: alembic_version.version_num", 3),
        (OperationalError, "table studies already exists", 3),
        (OperationalError, "database is locked", 3),
        (OperationalError, "no such server", 1),
    ],
)
def test_a_database_that_is_being_created_is_tried_again(
    kind: Any, text: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def make(url: str) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise kind("INSERT", {}, Exception(text))
        return optuna.storages.InMemoryStorage()

    monkeypatch.setattr(optuna.storages, "RDBStorage", make)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    if tries == 1:
        with pytest.raises(BadValue, match=text):
            open_storage(tmp_path, "sqlite:///study.db")
    else:
        open_storage(tmp_path, "sqlite:///study.db")
    assert calls == tries


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:hunter2@host:1/db", "postgresql://:***@host:1/db"),
        ("mysql+pymysql://me:a/b@c:d@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
        ("postgresql:me:hunter2@host/db", "postgresql:me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:////a/b/study.db", "sqlite:////a/b/study.db"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert hide_password(url, url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://me:hunter2@host/db",
        "postgresql://me:hunter2@host:port/db",
        "me:hunter2@host",
        "postgresql://me:hunter2@localhost:1/db",
        "mysql://me:hunt%65r2@localhost:1/db",
    ],
)
def test_no_message_has_a_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadValue) as refused:
        open_storage(tmp_path, url)
    assert "--storage" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "hunt%65r2" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_a_password_in_a_drivers_message_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(url: str) -> Any:
        raise OperationalError("SELECT", {}, Exception("cannot log in with hunter 2"))

    monkeypatch.setattr(optuna.storages, "RDBStorage", make)
    with pytest.raises(BadValue, match=r"cannot log in with \*\*\*"):
        open_storage(tmp_path, "postgresql://me:hunter%202@host/db")
