import importlib
import math
import sys
import types

import pytest

import bpfree
from bpfree._renamed import OLD_MODULES, module_getattr, with_new_keys
from bpfree.core.readouts import Readout
from bpfree.encodings import Encoding
from tests.helpers import make_mlp


def test_an_old_attribute_is_the_new_one_with_a_warning() -> None:
    module = types.ModuleType("renamed_here")
    module.new = object()  # type: ignore[attr-defined]
    sys.modules["renamed_here"] = module
    get = module_getattr("renamed_here", {"old": "new", "moved": "math:tau"})
    try:
        with pytest.warns(FutureWarning, match=r"renamed_here\.old is now renamed_here\.new"):
            assert get("old") is module.new  # type: ignore[attr-defined]
        with pytest.warns(FutureWarning, match=r"renamed_here\.moved is now math\.tau"):
            assert get("moved") == math.tau
        with pytest.raises(AttributeError, match="no attribute 'other'"):
            get("other")
    finally:
        del sys.modules["renamed_here"]


def test_old_keys_become_new_ones_in_place() -> None:
    with pytest.warns(FutureWarning, match=r"net\.colour is now net\.color"):
        assert list(with_new_keys({"a": 1, "colour": 2, "b": 3}, {"colour": "color"}, "net").items()) == [
            ("a", 1),
            ("color", 2),
            ("b", 3),
        ]


def test_an_old_and_a_new_key_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give color alone"):
        with_new_keys({"colour": 1, "color": 2}, {"colour": "color"})


@pytest.mark.parametrize(("old", "new"), OLD_MODULES.items())
def test_an_old_module_is_imported_under_its_new_name(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=rf"{old} is now {new}"):
        module = importlib.import_module(old)
    names = {"bpfree.cascade": "Block", "bpfree.readouts": "BlockReadout", "bpfree.graph": "Graph"}
    name = names.get(old)
    if name is not None:
        assert getattr(module, name) is getattr(importlib.import_module(new), name)
    del sys.modules[old]


def test_new_keys_alone_give_no_warning() -> None:
    assert with_new_keys({"color": 2}, {"colour": "color"}) == {"color": 2}


def test_the_error_of_links_has_its_old_name_for_one_release() -> None:
    with pytest.warns(FutureWarning, match=r"bpfree\.WireError is now bpfree\.LinkError"):
        assert bpfree.WireError is bpfree.LinkError


def test_a_trainer_with_a_hook_of_the_old_name_is_used_with_a_warning() -> None:
    inner = bpfree.MonoForward(make_mlp(), progress=False)
    with pytest.warns(FutureWarning, match=r"Old\.tutor is now Old\.front_trainer"):

        class Old(bpfree.MonoForward):
            def tutor(self) -> bpfree.Trainer | None:
                return inner

    assert Old(make_mlp(), progress=False).front_trainer() is inner
    with pytest.warns(FutureWarning, match=r"Trainer\.tutor is now Trainer\.front_trainer"):
        assert inner.tutor() is None


@pytest.mark.parametrize(
    ("base", "name", "new"),
    [
        (Encoding, "looks", "variants"), (Encoding, "judge", "metric of the trainer"),
        (Readout, "hear", "collect"), (Readout, "judge", "predict"), (Readout, "ear", "input_kind"),
    ],
)  # fmt: skip
def test_members_of_the_first_release_are_refused(base: type, name: str, new: str) -> None:
    with pytest.raises(bpfree.BadValue, match=rf"Old\.{name} is no longer called: use .*{new}"):
        type("Old", (base,), {name: None})
