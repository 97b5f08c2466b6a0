"""Old public names are accepted with a warning."""

from __future__ import annotations

import pytest

import bpfree
import bpfree.testing


def test_old_names_give_a_warning_and_the_new_object() -> None:
    with pytest.warns(FutureWarning, match=r"bpfree\.WireError is now bpfree\.LinkError"):
        assert bpfree.WireError is bpfree.LinkError
    with pytest.warns(FutureWarning, match="assert_passes is now .*assert_pass_counts"):
        assert bpfree.testing.assert_passes is bpfree.testing.assert_pass_counts
