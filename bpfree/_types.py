"""Names of types that several packages use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What the json module reads and writes as an object.
JsonObject = dict[str, Any]
JsonMapping = Mapping[str, Any]
