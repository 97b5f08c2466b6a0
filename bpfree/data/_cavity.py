"""Drives and measured outputs of an acoustic cavity (Momeni et al., Science 382, 1297, 2023)."""

from __future__ import annotations

from pathlib import Path

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
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Drive amplitudes `[10000, 20]` in 0..1, and the measured spectral amplitudes `[10000, 20]`.

    The index of a drive is 5 * loudspeaker + tone, the index of an output 5 * microphone + component. The
    first row of the files, a placeholder of zeros, is skipped.

    Args:
        root: Folder of the data sets. Default: $BPFREE_DATA, or the user's cache folder if that is not set.
        download: Whether to download missing files. Default: only into the user's cache folder.

    Raises:
        DataNotFound: If the files are missing and cannot be downloaded, or have other contents.
    """
    folder = data_root(root) / "PhyLL"
    arrays = []
    for name, (remote, sha256) in _FILES.items():
        file = folder / name
        if not file.exists():
            if not may_download(root, download):
                raise DataNotFound(
                    f"{file} is missing; set download=True to download it, or unset BPFREE_DATA and leave "
                    "root out"
                )
            fetch(_REPOSITORY + remote, file, sha256)
        try:
            arrays.append(np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2))
        except ValueError as error:
            raise DataNotFound(f"{file} cannot be read ({error}); remove it and try again") from error
    x, y = arrays
    if x.shape != y.shape or x.shape[1] != 20:
        raise DataNotFound(
            f"{folder}: the drives are {list(x.shape)} and the outputs {list(y.shape)}; expected [N, 20] for "
            "both; remove the files and try again"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataNotFound(f"{folder}: some values are NaN or infinite; remove the files and try again")
    return x, y
