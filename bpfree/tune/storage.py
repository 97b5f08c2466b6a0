"""Where studies are kept: a journal file in the folder, or any database that Optuna knows."""

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
from bpfree.bench.results import cut_torn_line

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"

#: How often a database is tried whose tables another process is making.
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
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    def said(error: Exception) -> str:
        return hide_password(" ".join(str(error).split()), url)

    shown = hide_password(url, url)
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise BadValue(
                f"--storage {shown}: not the URL of a database ({said(error)}); for example "
                "sqlite:///study.db or postgresql://user@host/name"
            ) from None
        except ImportError as error:
            raise BadValue(f"--storage {shown}: its driver is not installed ({said(error)})") from None
        except (SQLAlchemyError, RuntimeError) as error:
            # Another process may be making the same tables just now; then they are there the next time.
            clash = isinstance(error, DBAPIError) and re.search(
                "exists|unique|duplicate|locked", str(error), re.I
            )
            if not clash or attempt == ATTEMPTS - 1:
                raise BadValue(f"--storage {shown}: cannot be opened: {said(error)}") from None
            time.sleep(0.1 * (attempt + 1))
    raise AssertionError


def hide_password(text: str, url: str | None) -> str:
    """``text`` without the passwords in the database's ``url``, in which three stars stand for each."""
    # What is no URL, of a user who left something out, may hold one as well.
    found = re.search(r"://[^/?#:]*:(.+)@", url or "") or re.search(r":([^:@/]+)@", url or "")
    secrets = [found[1]] if found else []
    secrets += re.findall(r"[?&;][^=&;]*(?:pass|pwd|secret|token|odbc)[^=&;]*=([^&;]+)", url or "", re.I)
    for secret in {form for own in secrets for form in (own, unquote_plus(own), unquote(own))}:
        text = text.replace(secret, "***")
    return text


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other command on this folder is taking trials."""
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
