"""Results that were computed from the states of nodes and their graph."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from bpfree._feature_store import Store
from bpfree.graphs.sparse import Constant


class NodeCache(Constant):
    """Results computed from one set of node states, each with the node numbers that it belongs to.

    A result is looked up by its key and by the identity of its tensor of node numbers. The cache holds a
    reference to that tensor, so that no other tensor can get its address.

    Args:
        store: Where large results are stored; by default in memory.
        enabled: Whether `put` stores anything.
        sources: Objects that stay alive as long as the cache, since it is found by their addresses.
    """

    def __init__(
        self, store: Store | None = None, enabled: bool = True, sources: tuple[Any, ...] = ()
    ) -> None:
        self.store, self.enabled, self.sources = store or Store(), enabled, sources
        self._results: dict[tuple[Hashable, int | None], tuple[Any, Tensor | None]] = {}

    def get(self, key: Hashable, nodes: Tensor | None = None) -> Any:
        """The result stored for ``key`` and the node numbers ``nodes`` (None: all nodes), or None."""
        entry = self._results.get((key, None if nodes is None else id(nodes)))
        return None if entry is None else entry[0]

    def put(self, key: Hashable, result: Any, nodes: Tensor | None = None) -> None:
        """Store a result, if the cache is enabled."""
        if self.enabled:
            self._results[key, None if nodes is None else id(nodes)] = (result, nodes)

    def for_other_states(self) -> NodeCache:
        """An empty cache with the same store, enabled if this one is."""
        return NodeCache(self.store, self.enabled)

    def disabled(self) -> NodeCache:
        """A cache with the same store that stores no results."""
        return NodeCache(self.store, enabled=False)
