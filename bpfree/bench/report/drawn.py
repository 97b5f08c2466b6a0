"""Tables of what was drawn and asked: energy and carbon by scope, and the devices of physical networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bpfree.bench.arms import PROTOCOLS, Arm, Group
from bpfree.bench.conditions import machine
from bpfree.bench.report.figures import NOTHING, Figure, Table, mean
from bpfree.bench.results import Row, figure

#: When idling was measured: around the training.
EDGES = ("before", "after")


def energies(found: Sequence[Group]) -> Table:
    """Each scope of each machine by itself: what was measured and what was modelled are never added up."""
    heads = [
        "arm", "setting", "scope", "machine", "gross, J", "net of idling, J", "idling, W",
        "integral ÷ counter", "carbon, g", "grid",
    ]  # fmt: skip
    table = Table("energies", "Energy and carbon of the training: means over seeds, a line per scope", heads)
    table.filters = [1, 2]
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            machines: dict[tuple[str, str], list[Row]] = {}
            for row in arm.rows:
                for scope in joules_by_scope(row):
                    machines.setdefault((scope, machine(row)), []).append(row)
            for (scope, where), rows in machines.items():
                measured = [row for row in rows if row["energy"].get("scope") == scope]
                table.anchors.append(f"rows-{g}-{a}")
                table.rows.append([
                    Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                    Figure(scope, "" if measured else "not measured"),
                    Figure(where if len({found for _, found in machines}) > 1 else ""),
                    mean([joules_by_scope(row).get(scope) for row in rows]),
                    _net(mean([_either(row, "net_j") for row in measured])),
                    mean([figure(row, "energy", f"idle_{at}_w") for row in measured for at in EDGES]),
                    mean([figure(row, "energy", "ratio") for row in measured]),
                    mean([_grams(row, scope) for row in rows]),
                    _grid(arm),
                ])  # fmt: skip
    return table.without_empty()


def _net(found: Figure) -> Figure:
    """A net energy below zero is noise, and said to be."""
    below = isinstance(found.order, float) and found.order < 0
    return replace(found, note="below idling: within the noise") if below else found


def _grams(row: Row, scope: str) -> float | None:
    kilograms = figure(row, "carbon", "kg", scope)
    return None if kilograms is None else 1000 * kilograms


def _either(row: Row, what: str) -> float | None:
    gpu = figure(row, "energy", f"gpu_{what}")
    return figure(row, "energy", f"cpu_{what}") if gpu is None else gpu


def joules_by_scope(row: Row) -> dict[str, float]:
    """Joules by scope: the measured ones of the device that trained, then the modelled ones."""
    energy = row.get("energy", {})
    gross = _either(row, "gross_j")
    modelled: dict[str, float] = energy.get("modelled", {}).get("joules", {})
    return ({} if gross is None else {str(energy["scope"]): gross}) | modelled


def _grid(arm: Arm) -> Figure:
    carbon = next((row["carbon"] for row in arm.rows if "carbon" in row), None)
    if carbon is None:
        return NOTHING
    named = f"{carbon['region']}, {carbon['year']}: {carbon['g_per_kwh']:g} g/kWh"
    return Figure(named, f"{carbon['source']}; PUE {carbon['pue']:g}")


#: Rows that devices were sent, by purpose, and how a report calls them.
PURPOSES = {"train": "training", "eval": "evaluation", "calibration": "calibration"}


def devices(found: Sequence[Group]) -> Table:
    """What the devices inside physical networks are, were asked, and would have taken."""
    heads = [
        "arm", "setting", "device", "nonlinearity index",
        *(f"rows, {name}" for name in PURPOSES.values()),
        "calls sent again", "rows out of range", "hardware time, s, modelled", "energy, J, modelled",
    ]  # fmt: skip
    caption = (
        "Physical devices: means over seeds; modelled figures follow from a stated profile of the hardware"
    )
    table = Table("devices", caption, heads, filters=[1])
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            if not any(row.get("physics", {}).get("devices") for row in arm.rows):
                continue
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(", ".join(dict.fromkeys(d["kind"] for row in arm.rows for d in _own(row)))),
                mean([figure(row, "physics", "nonlinearity_index") for row in arm.rows]),
                *(mean([figure(row, "physics", "passes", name) for row in arm.rows]) for name in PURPOSES),
                mean([float(sum(d["retries_used"] for d in _own(row))) for row in arm.rows]),
                mean([_out_of_range(row) for row in arm.rows]),
                mean([figure(row, "physics", "modelled", "time_s") for row in arm.rows]),
                mean([figure(row, "physics", "modelled", "energy_j") for row in arm.rows]),
            ])  # fmt: skip
    return table.without_empty()


def _own(row: Row) -> list[Row]:
    devices: list[Row] = row["physics"]["devices"]
    return devices


def _out_of_range(row: Row) -> float:
    """Rows that were clipped into the device's range, or that a surrogate had never seen the like of."""
    return float(sum(d["clipped_rows"] + d.get("out_of_range_rows", 0) for d in _own(row)))
