"""`import bpfree` needs torch alone, and little beyond it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "pydantic",
    "torchvision",
    "torch_geometric",
    "sklearn",
    "scipy",
    "rich",
    "optuna",
    "codecarbon",
    "ruamel",
    "PIL",
    "platformdirs",
)


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, bpfree, bpfree.data; print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_every_public_name_is_there() -> None:
    import bpfree

    assert all(hasattr(bpfree, name) for name in bpfree.__all__)
    assert sorted(bpfree.__all__) == bpfree.__all__
