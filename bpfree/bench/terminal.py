"""Output to the terminal: text is printed as it stands, whatever characters names hold and streams take."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import TextColumn

#: What stands for a character of ours that a stream cannot encode; others are written as escapes.
ASCII = {"–": "-", "±": "+-", "÷": "/", "×": "x", "≠": "!=", "≈": "~", "…": "...", "─": "-", "·": "."}

#: Columns of text that goes to a file or a pipe.
WIDE = 180


def visible(text: str) -> str:
    """The text in one line: control characters, line breaks and lone surrogates become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def console(stderr: bool = False, width: int = WIDE) -> Console:
    """A console that takes no markup from text, and never fails because of a character or a closed pipe.

    Args:
        stderr: Print to the standard error instead of the standard output.
        width: Columns where the output goes to no terminal.
    """
    stream: Any = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="bpfree.replace")
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "stderr": stderr}
    found = _Console(**plain)
    return found if found.is_terminal else _Console(**plain, width=width)


def label_column() -> TextColumn:
    """The descriptions of a progress bar, as they stand."""
    return TextColumn("{task.description}", markup=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader went away (``| head``): print nothing more, and let the work and its exit code be."""
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
