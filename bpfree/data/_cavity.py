"""Drives and measured answers of a real acoustic cavity (Momeni et al., Science 382, 1297, 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpfree._errors import DataNotFound
from bpfree.data._fetch import fetch
from bpfree.data._sources import data_root, may_download

_REPOSITORY = (
    "https://raw.githubusercontent.com/MomeniAli/PhyLL/1e63b0dd02dcda2693364750c7cf772c8091dd5c/"
    "Experimental%20Data/Acoustic/"
)
_FILES = {
    "acoustic_x.csv": ("x_data.csv", "348d6952fc328325da6070b6ff44ff3dc960b695e7bd08ef7389e64d9cf21f35"),
    "acoustic_y.csv": ("y_data.csv", "03c83be26aa1e56456e26e0c9e86b548906dbc0631c2e9300545f271c001648e"),
}


def acoustic_cavity(
    root: str | Path | None = None, *, download: bool | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Drive amplitudes `[10000, 20]` in 0..1, and the spectral amplitudes that were measured, `[10000, 20]`.

    Drive index = 5 * loudspeaker + tone, answer index = 5 * microphone + component. The files' first row, all
    zeros, is a placeholder and is left out.

    Args:
        root: The folder of the data sets; by default $BPFREE_DATA, else the user's cache folder.
        download: Whether missing files may be downloaded; by default only into the user's cache folder.

    Raises DataNotFound where the files are missing and cannot be downloaded, or are others.
    """
    folder = data_root(root) / "PhyLL"
    found = []
    for name, (remote, sha256) in _FILES.items():
        file = folder / name
        if not file.exists():
            if not may_download(root, download):
                raise DataNotFound(
                    f"expected {file}; set download=True to fetch it, or unset BPFREE_DATA and give no root"
                )
            fetch(_REPOSITORY + remote, file, sha256)
        try:
            found.append(np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2))
        except ValueError as error:
            raise DataNotFound(f"{file} cannot be read ({error}); remove it and try again") from error
    x, y = found
    if x.shape != y.shape or x.shape[1] != 20:
        raise DataNotFound(
            f"{folder}: drives {list(x.shape)} and answers {list(y.shape)}; expected [N, 20] both"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataNotFound(f"{folder}: values are NaN or infinite; remove the files and try again")
    return x, y
