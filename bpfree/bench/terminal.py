"""Output to the terminal: text is printed without markup, and characters that a stream lacks are replaced."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import TextColumn

from bpfree.bench.files import Mapped

#: Replacements of characters that a stream cannot encode; all others are written as escapes.
ASCII = {"–": "-", "±": "+-", "÷": "/", "×": "x", "≠": "!=", "≈": "~", "…": "...", "─": "-", "·": "."}

#: Width of text that goes to a file or a pipe, in columns.
WIDE = 180


def visible(text: str) -> str:
    """The text in one line: control characters, line breaks and lone surrogates become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def console(stderr: bool = False, width: int = WIDE) -> Console:
    """A console that ignores markup in text, and does not fail on a character or a closed pipe.

    Args:
        stderr: Print to the standard error instead of the standard output.
        width: Width in columns where the output is not a terminal.
    """
    stream: Any = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="bpfree.replace")
    plain: Mapped = {"markup": False, "emoji": False, "highlight": False, "stderr": stderr}
    result = _Console(**plain)
    return result if result.is_terminal else _Console(**plain, width=width)


def label_column() -> TextColumn:
    """The column of a progress bar with the descriptions, without markup."""
    return TextColumn("{task.description}", markup=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Print nothing more after the reader has closed the pipe (``| head``); the exit code stays."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(ASCII.get(c, c.encode("unicode_escape").decode()) for c in bad), error.end


codecs.register_error("bpfree.replace", _replace)
