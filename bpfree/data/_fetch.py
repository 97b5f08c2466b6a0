"""Download of one file, resumed after an interruption and verified by its checksum."""

from __future__ import annotations

from pathlib import Path

from bpfree._errors import DataNotFound

_CHUNK = 1 << 16
_TIMEOUT_S = 30


def fetch(url: str, file: Path, sha256: str | None) -> Path:
    """Download ``url`` to ``file`` and return ``file``.

    Nothing is downloaded if ``file`` exists with the expected checksum. An interrupted download is continued
    from ``<file>.part``.

    Args:
        url: Address of the file.
        file: Destination. Its folder is created.
        sha256: Expected checksum, or None if the content is verified after reading.

    Raises:
        DataNotFound: If the download fails, or the checksum differs.
    """
    import pooch
    import requests
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    known = f"sha256:{sha256}" if sha256 else None
    part = file.with_name(file.name + ".part")
    try:
        # Two processes that download at the same time would overwrite each other's files.
        with FileLock(file.with_name(file.name + ".lock")):
            pooch.retrieve(url, known, file.name, file.parent, downloader=_Resuming(part))
            part.unlink(missing_ok=True)
    except (requests.RequestException, OSError) as error:
        raise DataNotFound(
            f"{url} could not be downloaded ({error}); try again to continue from {part}"
        ) from error
    except ValueError as error:  # raised by pooch if the checksum differs
        part.unlink(missing_ok=True)
        raise DataNotFound(f"{url} has another checksum than expected ({error})") from error
    return file


class _Resuming:
    """Downloader for pooch that writes to ``part`` and continues a file that is already there."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        import requests

        done = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            complete = done and response.status_code == requests.codes.requested_range_not_satisfiable
            if not complete:
                response.raise_for_status()
                resumed = response.status_code == requests.codes.partial_content
                with open(self.part, "ab" if resumed else "wb") as part:
                    for chunk in response.iter_content(_CHUNK):
                        part.write(chunk)
        Path(output_file).write_bytes(self.part.read_bytes())
