"""`report DIR`: one HTML file that holds all of a result, and asks nothing of anyone."""

from bpfree.bench.report.page import html, write
from bpfree.bench.report.searches import read_search

__all__ = ["html", "read_search", "write"]
