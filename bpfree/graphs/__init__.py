"""Graphs, and the states of their nodes. Blocks and feeds of graphs are in `blocks` and `feed`."""

from bpfree.graphs.graph import Graph

__all__ = ["Graph"]
