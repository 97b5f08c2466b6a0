"""The devices in the fronts of a run: their state in checkpoints, and the files of their cached outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bpfree.core.cascade import Cascade
from bpfree.engine import checkpoint as ckpt
from bpfree.engine.base_feed import BaseFeed
from bpfree.nn import passes, physical_devices


class Measurements:
    """The devices of a cascade, and the files of the outputs that the feed caches.

    Cached outputs are large and change rarely, so they are saved beside the checkpoint, in one file for each
    height of the feed, when they were measured: a resumed run measures nothing twice. Without a device or
    without a checkpoint nothing is written.

    Args:
        cascade: The blocks.
        feed: Caches outputs for training.
        path: The file of the checkpoint, or None.
        fingerprint: Of the run.
    """

    def __init__(self, cascade: Cascade, feed: BaseFeed, path: Path | None, fingerprint: str) -> None:
        self.cascade, self.feed, self.path, self.fingerprint = cascade, feed, path, fingerprint
        self.devices = physical_devices(cascade)

    @property
    def has_devices(self) -> bool:
        """Whether there is a device."""
        return bool(self.devices)

    def passes(self) -> dict[str, int]:
        """Rows that the devices have processed so far, by purpose."""
        return passes(self.cascade)

    def state(self, tensors: ckpt.Tensors) -> Any:
        """The states of the devices, as JSON; their arrays are added to ``tensors``."""
        if not self.devices:
            return []
        from bpfree.physics import split_state

        arrays, values = split_state([device.state_dict() for device in self.devices])
        tensors |= ckpt.prefixed(
            "apparatus", {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        )
        return values

    def load(self, values: Any, tensors: ckpt.Tensors) -> None:
        """Load the result of `state`."""
        if not self.devices:
            return
        from bpfree.physics import join_state

        arrays = {name: t.cpu().numpy() for name, t in ckpt.under("apparatus", tensors).items()}
        for device, state in zip(self.devices, join_state(arrays, values), strict=True):
            device.load_state_dict(state)

    def freeze_below(self, height: int, epoch: int, step: int) -> None:
        """Freeze the blocks below ``height`` in the feed, with saved outputs of devices if there are any.

        Args:
            height: Number of frozen blocks.
            epoch: Finished epochs of the stage.
            step: Steps taken in the current epoch.
        """
        path = self._file(height)
        if path is not None and path.exists():
            tensors, values = ckpt.read(path, self.feed.device)
            if values["fingerprint"] == self.fingerprint:
                self.feed.restore(height, tensors["features"], values["made_in"])
                if (epoch, step) == (values["made_in"], 0):
                    # They were measured after the checkpoint was written.
                    self.load(values["apparatus"], tensors)
                return
        self.feed.freeze_below(height)
        self._save()

    def too_old(self, epoch: int, limit: int | None) -> bool:
        """Whether the cached outputs of devices were measured ``limit`` epochs ago or earlier."""
        return limit is not None and self.feed.measured and epoch - self.feed.made_in >= limit

    def renew(self, epoch: int) -> None:
        """Measure the cached outputs again."""
        self.feed.renew(epoch)
        self._save()

    def remove_files(self) -> None:
        """Remove the files: the run is finished."""
        for height in range(len(self.cascade.units)):
            path = self._file(height)
            if path is not None:
                path.unlink(missing_ok=True)

    def _file(self, height: int) -> Path | None:
        if self.path is None or not self.devices:
            return None
        return self.path.with_name(f"{self.path.name}.measured{height}")

    def _save(self) -> None:
        path, features = self._file(self.feed.height), self.feed.features
        if path is None or features is None or not self.feed.measured:
            return
        tensors: dict[str, torch.Tensor] = {"features": features}
        values = {"fingerprint": self.fingerprint, "made_in": self.feed.made_in}
        ckpt.write(path, tensors, values | {"apparatus": self.state(tensors)})
