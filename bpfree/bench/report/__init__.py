"""`report DIR`: a self-contained HTML file with all results, which loads nothing."""

from bpfree.bench.report.page import html, write
from bpfree.bench.report.searches import read_search

__all__ = ["html", "read_search", "write"]
