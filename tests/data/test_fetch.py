"""Downloads from a local server: resumed, verified, and never incomplete."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bpfree._errors import DataNotFound
from bpfree.data._fetch import fetch

CONTENT = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, closes the connection after ``server.limit`` bytes, and may ignore ranges."""

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.requested.append(requested)
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.server.limit])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.requested, server.limit, server.ranges = [], len(CONTENT), True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/file.bin"


def test_a_file_is_downloaded_once(server: HTTPServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert fetch(url(server), tmp_path / "sub" / "file.bin", SHA256).read_bytes() == CONTENT
    assert server.requested == [None]
    assert not (tmp_path / "sub" / "file.bin.part").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_continued(server: HTTPServer, tmp_path: Path, ranges: bool) -> None:
    file = tmp_path / "file.bin"
    server.limit, server.ranges = 100_000, ranges
    with pytest.raises(DataNotFound, match="try again"):
        fetch(url(server), file, SHA256)
    assert not file.exists()
    n_bytes = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < n_bytes <= 100_000
    server.limit = len(CONTENT)
    assert fetch(url(server), file, SHA256).read_bytes() == CONTENT
    assert server.requested == [None, f"bytes={n_bytes}-"]


def test_a_complete_partial_file_needs_no_further_download(server: HTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(url(server), tmp_path / "file.bin", SHA256).read_bytes() == CONTENT


def test_a_wrong_checksum_raises_an_error_and_leaves_no_file(server: HTTPServer, tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="another checksum"):
        fetch(url(server), tmp_path / "file.bin", "0" * 64)
    assert not (tmp_path / "file.bin").exists() and not (tmp_path / "file.bin.part").exists()


def test_an_unreachable_server_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="could not be downloaded"):
        fetch("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", SHA256)
