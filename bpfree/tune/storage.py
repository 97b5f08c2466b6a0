"""Where studies are kept: a journal file in the folder, or any database that Optuna knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bpfree._errors import BadValue
from bpfree.bench.results import cut_torn_line

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"


def open_storage(folder: Path, url: str | None = None) -> BaseStorage:
    """The storage at ``url``, or the journal in ``folder``.

    Raises:
        BadValue: If it cannot be opened: no folder, a bad URL, no driver, no such server, a broken file.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _journal(folder / JOURNAL) if url is None else _database(url)
    except OSError as error:
        raise BadValue(f"{folder}: a study cannot be kept there: {error}") from None


class _SystemLock:
    """A lock of the system, which falls with the process that holds it."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self.lock: BaseFileLock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock = _SystemLock(path)
    try:
        with lock.lock:
            cut_torn_line(path)
            for line in path.read_bytes().splitlines() if path.exists() else ():
                json.loads(line)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, AssertionError) as error:
        raise BadValue(f"{path}: not a journal of Optuna ({error}): was the file edited?") from None


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        return RDBStorage(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadValue(
            f"--storage {url}: not the URL of a database ({error}); for example sqlite:///study.db or "
            "postgresql://user@host/name"
        ) from None
    except ImportError as error:
        raise BadValue(f"--storage {url}: its driver is not installed ({error})") from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise BadValue(f"--storage {url}: cannot be opened: {' '.join(str(error).split())}") from None


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other command on this folder is taking trials."""
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
