"""What a run has asked of devices: their state in its checkpoints, and the answers that it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bpfree.cascade import Cascade
from bpfree.nn import passes, physical_devices
from bpfree.schedules import Feed, GraphFeed
from bpfree.trainers import checkpoint as ckpt


class Measurements:
    """The devices behind a cascade, and the files of the answers that the feed keeps.

    Answers are large and change seldom, so they lie beside the checkpoint, a file for each height of the
    feed, written when they were measured: a run that is taken up measures nothing twice. With no device in
    the cascade, or no checkpoint, nothing is written.

    Args:
        cascade: The blocks.
        feed: What keeps answers for training.
        path: The checkpoint's file, or None.
        fingerprint: Of the run.
    """

    def __init__(self, cascade: Cascade, feed: Feed | GraphFeed, path: Path | None, fingerprint: str) -> None:
        self.cascade, self.feed, self.path, self.fingerprint = cascade, feed, path, fingerprint
        self.physical_devices = physical_devices(cascade)

    @property
    def kept(self) -> Feed:
        """The feed that keeps answers: no device stands behind a graph."""
        assert isinstance(self.feed, Feed)
        return self.feed

    def __bool__(self) -> bool:
        return bool(self.physical_devices)

    def passes(self) -> dict[str, int]:
        """Rows sent so far, by purpose."""
        return passes(self.cascade)

    def state(self, tensors: ckpt.Tensors) -> Any:
        """The devices' states, as JSON; arrays go to ``tensors``."""
        if not self.physical_devices:
            return []
        from bpfree.physics import split_state

        arrays, rest = split_state([one.state_dict() for one in self.physical_devices])
        tensors |= ckpt.prefixed(
            "apparatus", {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        )
        return rest

    def load(self, state: Any, tensors: ckpt.Tensors) -> None:
        """Put back what `state` took."""
        if not self.physical_devices:
            return
        from bpfree.physics import join_state

        arrays = {name: t.cpu().numpy() for name, t in ckpt.under("apparatus", tensors).items()}
        for one, own in zip(self.physical_devices, join_state(arrays, state), strict=True):
            one.load_state_dict(own)

    def climb(self, height: int, epoch: int, step: int) -> None:
        """Bring the feed to the block at ``height``, with what was measured for it if that was saved.

        Args:
            height: The block.
            epoch: Where the run stands in the stage of that block.
            step: Where it stands in the epoch.
        """
        path = self._file(height)
        if path is not None and path.exists():
            tensors, state = ckpt.read(path, self.kept.device)
            if state["fingerprint"] == self.fingerprint:
                self.kept.restore(height, tensors["features"], state["made_in"])
                if (epoch, step) == (state["made_in"], 0):
                    # They were measured after the checkpoint had been written.
                    self.load(state["apparatus"], tensors)
                return
        self.feed.climb(height)
        self._save()

    def too_old(self, epoch: int, limit: int | None) -> bool:
        """Whether what is kept was measured ``limit`` epochs ago or more."""
        return limit is not None and self.kept.measured and epoch - self.kept.made_in >= limit

    def renew(self, epoch: int) -> None:
        """Measure what is kept once more."""
        self.kept.renew(epoch)
        self._save()

    def forget(self) -> None:
        """Remove the files: the run is over."""
        for height in range(len(self.cascade.units)):
            path = self._file(height)
            if path is not None:
                path.unlink(missing_ok=True)

    def _file(self, height: int) -> Path | None:
        if self.path is None or not self.physical_devices:
            return None
        return self.path.with_name(f"{self.path.name}.measured{height}")

    def _save(self) -> None:
        path = self._file(self.feed.height)
        if path is None or not self.kept.measured or self.kept.features is None:
            return
        tensors: dict[str, torch.Tensor] = {"features": self.kept.features}
        state = {"fingerprint": self.fingerprint, "made_in": self.kept.made_in}
        ckpt.write(path, tensors, state | {"apparatus": self.state(tensors)})
