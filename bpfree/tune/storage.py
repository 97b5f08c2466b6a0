"""The storage of studies: a journal file in the folder, or a database that Optuna supports."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus

from bpfree._errors import BadValue
from bpfree.bench.results import remove_incomplete_line

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"

#: Attempts to open a database while another process is creating its tables.
ATTEMPTS = 8


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
        raise BadValue(f"{folder}: a study cannot be stored there: {error}") from None


class _SystemLock:
    """A lock of the system, which is released when its process ends."""

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
            remove_incomplete_line(path)
            for line in path.read_bytes().splitlines() if path.exists() else ():
                json.loads(line)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, AssertionError) as error:
        raise BadValue(f"{path}: not a journal of Optuna ({error}): was the file edited?") from None


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    def message(error: Exception) -> str:
        return hide_password(" ".join(str(error).split()), url)

    shown = hide_password(url, url)
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise BadValue(
                f"--storage {shown}: not the URL of a database ({message(error)}); for example "
                "sqlite:///study.db or postgresql://user@host/name"
            ) from None
        except ImportError as error:
            raise BadValue(f"--storage {shown}: its driver is not installed ({message(error)})") from None
        except (SQLAlchemyError, RuntimeError) as error:
            # Another process may be creating the same tables; then the next attempt succeeds.
            clash = isinstance(error, DBAPIError) and re.search(
                "exists|unique|duplicate|locked", str(error), re.I
            )
            if not clash or attempt == ATTEMPTS - 1:
                raise BadValue(f"--storage {shown}: cannot be opened: {message(error)}") from None
            time.sleep(0.1 * (attempt + 1))
    raise AssertionError


def hide_password(text: str, url: str | None) -> str:
    """``text`` with each password in the database's ``url`` replaced by three stars."""
    # An incomplete URL may contain a password as well.
    match = re.search(r"://[^/?#:]*:(.+)@", url or "") or re.search(r":([^:@/]+)@", url or "")
    secrets = [match[1]] if match else []
    secrets += re.findall(r"[?&;][^=&;]*(?:pass|pwd|secret|token|odbc)[^=&;]*=([^&;]+)", url or "", re.I)
    for secret in {form for raw in secrets for form in (raw, unquote_plus(raw), unquote(raw))}:
        text = text.replace(secret, "***")
    return text


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other command on this folder is taking trials, and lock it."""
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
