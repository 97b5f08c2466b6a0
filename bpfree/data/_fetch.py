"""Download one file: resumed where it was cut off, checked, and put in place at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpfree._errors import DataNotFound

_CHUNK = 1 << 16
_TIMEOUT_S = 30


def fetch(url: str, file: Path, sha256: str | None) -> Path:
    """Download ``url`` to ``file``, unless that is there with the right checksum; returns ``file``.

    What an earlier attempt left in ``<file>.part`` is continued.

    Args:
        url: Where from.
        file: Where to; its folder is made.
        sha256: Expected checksum; None: whoever reads the file checks what is in it.

    Raises:
        DataNotFound: If the download fails, or its checksum is another one.
    """
    import pooch
    import requests
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    known = f"sha256:{sha256}" if sha256 else None
    part = file.with_name(file.name + ".part")
    try:
        # Two processes that download at once would write into one another's files.
        with FileLock(file.with_name(file.name + ".lock")):
            pooch.retrieve(url, known, file.name, file.parent, downloader=_Resuming(part))
            part.unlink(missing_ok=True)
    except (requests.RequestException, OSError) as error:
        raise DataNotFound(
            f"{url} could not be downloaded ({error}); try again, it goes on at {part}"
        ) from error
    except ValueError as error:  # pooch's word for another checksum
        part.unlink(missing_ok=True)
        raise DataNotFound(f"{url} is not the file that was expected ({error})") from error
    return file


class _Resuming:
    """A downloader for pooch that keeps what it has in ``part``, and goes on from there."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        import requests

        done = self.part.stat().st_size if self.part.exists() else 0
        wanted = {"Range": f"bytes={done}-"} if done else {}
        with requests.get(url, headers=wanted, stream=True, timeout=_TIMEOUT_S) as answer:
            whole = done and answer.status_code == requests.codes.requested_range_not_satisfiable
            if not whole:
                answer.raise_for_status()
                resumed = answer.status_code == requests.codes.partial_content
                with open(self.part, "ab" if resumed else "wb") as part:
                    for chunk in answer.iter_content(_CHUNK):
                        part.write(chunk)
        Path(output_file).write_bytes(self.part.read_bytes())
