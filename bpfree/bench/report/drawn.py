"""Tables of energy and carbon by scope, and of the devices of physical networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bpfree.bench.arms import PROTOCOLS, Arm, Group
from bpfree.bench.conditions import machine
from bpfree.bench.report.figures import NOTHING, Figure, Table, mean
from bpfree.bench.results import Row, figure

#: When idling was measured: around the training.
EDGES = ("before", "after")


def energies(groups: Sequence[Group]) -> Table:
    """Energy by scope and machine: measured and modeled values are never added."""
    heads = [
        "arm", "setting", "scope", "machine", "gross, J", "net of idling, J", "idling, W",
        "integral ÷ counter", "carbon, g", "grid",
    ]  # fmt: skip
    table = Table("energies", "Energy and carbon of the training: means over seeds, a line per scope", heads)
    table.filters = [1, 2]
    for g, group in enumerate(groups):
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
                    Figure(where if len({name for _, name in machines}) > 1 else ""),
                    mean([joules_by_scope(row).get(scope) for row in rows]),
                    _net(mean([_either(row, "net_j") for row in measured])),
                    mean([figure(row, "energy", f"idle_{when}_w") for row in measured for when in EDGES]),
                    mean([figure(row, "energy", "ratio") for row in measured]),
                    mean([_grams(row, scope) for row in rows]),
                    _grid(arm),
                ])  # fmt: skip
    return table.without_empty()


def _net(energy: Figure) -> Figure:
    """A net energy with a note where it is below zero, which is noise."""
    below = isinstance(energy.order, float) and energy.order < 0
    return replace(energy, note="below idling: within the noise") if below else energy


def _grams(row: Row, scope: str) -> float | None:
    kilograms = figure(row, "carbon", "kg", scope)
    return None if kilograms is None else 1000 * kilograms


def _either(row: Row, what: str) -> float | None:
    gpu = figure(row, "energy", f"gpu_{what}")
    return figure(row, "energy", f"cpu_{what}") if gpu is None else gpu


def joules_by_scope(row: Row) -> dict[str, float]:
    """Joules by scope: those measured on the device that trained, then the modeled ones."""
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


#: Counters of rows sent to devices, and their names in a report.
ROW_COUNTERS = {"train": "training", "eval": "evaluation", "calibration": "calibration"}


def devices(groups: Sequence[Group]) -> Table:
    """The kinds of the devices in physical networks, the rows sent to them, and modeled time and energy."""
    heads = [
        "arm", "setting", "device", "nonlinearity index",
        *(f"rows, {name}" for name in ROW_COUNTERS.values()),
        "calls sent again", "rows out of range", "hardware time, s, modeled", "energy, J, modeled",
    ]  # fmt: skip
    caption = (
        "Physical devices: means over seeds; modeled values follow from a stated profile of the hardware"
    )
    table = Table("devices", caption, heads, filters=[1])
    for g, group in enumerate(groups):
        for a, arm in enumerate(group.arms):
            if not any(row.get("physics", {}).get("devices") for row in arm.rows):
                continue
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(", ".join(dict.fromkeys(d["kind"] for row in arm.rows for d in _devices(row)))),
                mean([figure(row, "physics", "nonlinearity_index") for row in arm.rows]),
                *(mean([figure(row, "physics", "passes", k) for row in arm.rows]) for k in ROW_COUNTERS),
                mean([float(sum(d["retries_used"] for d in _devices(row))) for row in arm.rows]),
                mean([_out_of_range(row) for row in arm.rows]),
                mean([figure(row, "physics", "modelled", "time_s") for row in arm.rows]),
                mean([figure(row, "physics", "modelled", "energy_j") for row in arm.rows]),
            ])  # fmt: skip
    return table.without_empty()


def _devices(row: Row) -> list[Row]:
    devices: list[Row] = row["physics"]["devices"]
    return devices


def _out_of_range(row: Row) -> float:
    """Rows that were clipped to the device's range, or are outside of the data of a surrogate."""
    return float(sum(d["clipped_rows"] + d.get("out_of_range_rows", 0) for d in _devices(row)))
