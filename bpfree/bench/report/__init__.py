"""`report DIR`: one HTML file that holds all of a result, and asks nothing of anyone."""

from bpfree.bench.report.page import html, write

__all__ = ["html", "write"]
