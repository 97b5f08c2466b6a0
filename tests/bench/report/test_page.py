"""The page shows the values of the rows, and loads nothing."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bpfree import BadValue
from bpfree.bench.__main__ import main
from bpfree.bench.report import html, read_search, write
from bpfree.bench.results import Results
from tests.bench.report.samples import NASTY, sample, search
from tests.bench.rows import arm, row


class Page(HTMLParser):
    """Tables as text by id, and every attribute that could load something."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self._table, self._cell = "", False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag == "table":
            self._table = found.get("id") or ""
        if self._table and tag == "tr":
            self.tables.setdefault(self._table, []).append([])
        if self._table and tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True
        if tag == "small":
            self.handle_data(" | ")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._table = "" if tag == "table" else self._table

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[self._table][-1][-1] += data.strip("\n")


@pytest.fixture(scope="module")
def content() -> str:
    """The page of the sample: half a second of drawing."""
    return html(sample())


@pytest.fixture(scope="module")
def page(content: str) -> Page:
    return Page(content)


def column(page: Page, table: str, head: str) -> dict[tuple[str, str], str]:
    """A column by name of the arm and protocol."""
    heads, *rows = page.tables[table]
    at = heads.index(head)
    return {
        (row[0].lstrip("■●▲◆▼★✚✖").partition(" | ")[0], row[1].partition(" | ")[2]): row[at] for row in rows
    }


def test_nothing_is_loaded_from_anywhere(content: str, page: Page) -> None:
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", content)
    assert "default-src 'none'" in content


def test_names_are_text(content: str) -> None:
    assert "<script>alert" not in content
    assert "&lt;script&gt;alert" in content


def test_ids_are_unique_and_every_link_has_a_target(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_table_holds_means_intervals_and_verdicts(page: Page) -> None:
    accuracy = column(page, "results", "test accuracy, %")
    # Mean 95.10, standard deviation 0.0790569, t(0.975, 4) = 2.7764451, five seeds.
    assert accuracy["backprop", "own convergence"] == "95.10 ± 0.10"
    assert accuracy["mono_forward", "own convergence"] == "90.10 ± 0.10"
    against = column(page, "results", "against backprop, points")
    assert against["mono_forward", "own convergence"].startswith("-5.00 [")
    assert against["mono_forward", "own convergence"].endswith("| DIFFERENT")
    assert against["mono_forward", "matched passes"] == "+0.00 | EQUIVALENT"
    assert against["backprop", "own convergence"] == "–"
    time = column(page, "results", "training time, s")
    assert time["mono_forward", "own convergence"].endswith("| ×0.500")
    assert all("energy" not in head for head in page.tables["results"][0])


def test_energy_is_shown_only_where_it_was_metered(content: str, page: Page) -> None:
    assert "No energy was metered" in content
    heads = page.tables["results"][0]
    assert not any("peak" in head for head in heads)


def test_measured_and_modeled_energy_are_separate() -> None:
    energy = {
        "scope": "measured:nvml_counter", "gpu_gross_j": 500.0, "gpu_net_j": 200.0, "idle_before_w": 60.0,
        "idle_after_w": 62.0, "ratio": 1.01, "modelled": {"joules": {"modelled:tdp": 90.0}},
        "tainted": {"cpu": {"tainted": ["somebody else"]}},
    }  # fmt: skip
    carbon = {
        "kg": {"measured:nvml_counter": 5e-5, "modelled:tdp": 9e-6}, "g_per_kwh": 360.0, "region": "Nowhere",
        "year": 2023, "source": "a table", "pue": 1.0,
    }  # fmt: skip
    metered = [[5, 0.85, 1.0, 250.0], [10, 0.9, 2.0, 500.0]]
    rows = arm("backprop", [0.9, 0.91], energy=energy, carbon=carbon, curve=metered)
    rows += arm("mono_forward", [0.9, 0.92], energy={**energy, "gpu_gross_j": 250.0}, curve=metered)
    content = html(rows, [0.8])
    found = Page(content).tables["energies"]
    assert [one[2:8] for one in found[1:3]] == [
        ["measured:nvml_counter", "500", "200", "61", "1.01", "0.0500"],
        ["modelled:tdp | not measured", "90", "–", "–", "–", "0.00900"],
    ]
    assert "Nowhere, 2023: 360 g/kWh | a table; PUE 1" in found[1]
    assert (
        column(Page(content), "results", "training energy, J")["mono_forward", "fixed epochs"]
        == "250 | ×0.500"
    )
    assert column(Page(content), "targets", "training energy, J")["backprop", "fixed epochs"] == "250"
    assert "No energy for 4 of 4 rows by the cpu: somebody else." in content
    assert "Accuracy against training energy" in content and "Curve to the target, training energy" in content


def test_modeled_energy_alone_is_named_and_a_net_below_zero_is_shown() -> None:
    model = {"modelled": {"joules": {"modelled:tdp": 90.0}}}
    content = html(arm("backprop", [0.9, 0.91], energy=model))
    assert "No energy was metered" not in content
    assert "Energy: modelled:tdp. It is modeled, not measured." in content
    assert "of the whole training as it was run" in content and "Of the training alone" not in content
    measured = {"scope": "measured:rapl", "cpu_gross_j": 50.0, "cpu_net_j": -2.0}
    rows = arm("backprop", [0.9, 0.91], energy=measured)
    rows[1]["env"]["cpu"] = "Another"
    (heads, *lines) = Page(html(rows)).tables["energies"]
    assert [line[heads.index("net of idling, J")] for line in lines] == [
        "-2 | below idling: within the noise"
    ] * 2
    assert [line[heads.index("machine")] for line in lines] == [
        "A processor, 1 thread(s)",
        "Another, 1 thread(s)",
    ]


def test_targets_missed_and_reached(page: Page) -> None:
    rows = [one for one in page.tables["targets"][1:] if "mono_forward" in one[0] and "own" in one[1]]
    assert [(one[2], one[3]) for one in rows] == [("80", "5 of 5"), ("97", "0 of 5")]
    # The baseline has a quarter more seeds than pairs of times: one of its runs was resumed.
    assert rows[0][4:] == ["2.50 MFLOP | ×0.250", "1.00"]
    assert rows[1][4:] == ["missed", "missed"]


def test_budgets_and_tuning(page: Page) -> None:
    assert column(page, "budgets", "tuning trials")[NASTY, "own convergence"] == "12"
    assert column(page, "budgets", "tuning, s")[NASTY, "own convergence"] == "345"
    assert column(page, "budgets", "tuning trials")["backprop", "own convergence"] == "–"
    assert column(page, "budgets", "protocol")["mono_forward", "matched passes"] == (
        "matched passes | backpropagation took 7.50"
    )


def test_devices_are_described(page: Page) -> None:
    assert "devices" not in page.tables
    device = {"kind": "surrogate", "retries_used": 3, "clipped_rows": 5, "out_of_range_rows": 7}
    physics = {
        "passes": {"train": 2400, "eval": 300, "calibration": 64, "other": 0}, "devices": [device, device],
        "nonlinearity_index": 0.125, "modelled": {"time_s": 862.4},
    }  # fmt: skip
    none = {"passes": {}, "devices": []}
    rows = arm("physical", [0.9, 0.8], physics=physics) + arm("physical", [0.9], "no physics", physics=none)
    heads, *found = Page(html(rows)).tables["devices"]
    assert len(found) == 1
    assert dict(zip(heads, found[0], strict=True)) == {
        "arm": "●physical (fitted surrogate)", "setting": "digits, mlp hidden 32-16 | fixed epochs",
        "device": "surrogate", "nonlinearity index": "0.125", "rows, training": "2,400",
        "rows, evaluation": "300", "rows, calibration": "64", "calls sent again": "6",
        "rows out of range": "24", "hardware time, s, modeled": "862",
    }  # fmt: skip


def test_searches_are_shown_with_their_plots(tmp_path: Path) -> None:
    content = html(sample(), searches=[read_search(search(tmp_path / "study"))])
    heads, won, lost = Page(content).tables["searches"]
    found = dict(zip(heads, won, strict=True))
    assert found["arm"].endswith("mono_forward") and found["search"] == "rates"
    assert found["validation accuracy, %"] == "97.12"
    assert found["settings"] == f"lr 0.0987, optimizer {NASTY} | at an end of its range: lr"
    assert dict(zip(heads, lost, strict=True))["diverged"] == "12" and lost[-1] == "–"
    svg = (tmp_path / "study" / "plots" / "mono_forward_history.svg").read_bytes()
    assert f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"' in content
    assert "search-section" not in html(sample())


def test_a_search_without_pictures_names_the_command_that_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, folder = Results(tmp_path / "rows"), search(tmp_path / "study")
    with results.writing():
        for one in sample():
            results.append(one)
    command = ["report", str(results.folder), "--study", str(folder)]
    assert main(command) == 0
    assert "no pictures" not in capsys.readouterr().out
    (folder / "plots" / "mono_forward_history.svg").unlink()
    assert main(command) == 0
    assert f"note: {folder} has no pictures of its search: python -m bpfree.tune report {folder} draws" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 2}'])
def test_a_folder_that_is_no_search_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(BadValue, match=r"not the (folder|summary) of a search"):
        read_search(tmp_path)


def test_every_row_is_in_the_provenance_and_every_failure_in_the_notes(content: str) -> None:
    for one in sample():
        if one["status"] == "ok":
            assert one["cell_id"] in content
    assert "the loss became nan" in content
    assert "1 rows were stopped and resumed" in content
    assert "5 rows come from cells that shared the machine" in content


def test_where_backpropagation_wins(content: str) -> None:
    wins = content[content.index("Where backpropagation wins</h2>") : content.index("Where it loses")]
    accuracy = wins[: wins.index("training time")]
    assert "<b>mono_forward</b> -5.00" in accuracy
    assert "Ahead, and not decided, of:" in accuracy and "alert" in accuracy
    assert "matched passes" not in accuracy


def test_seeds_that_ended_with_the_same_weights_are_no_replicates(content: str) -> None:
    rows = arm("mono_forward", [0.9, 0.9, 0.8], weights_sha256="same")
    assert "ended with the same weights" in html(rows)
    assert "mono_forward, seeds 0, 1, 2" in html(rows)
    assert "ended with the same weights" not in content


def test_targets_chosen_afterwards_are_marked(content: str) -> None:
    assert "chosen after the runs" in html(sample(), [0.9])
    assert "chosen after the runs" not in content


def test_the_same_rows_give_the_same_page(content: str) -> None:
    assert html(sample()) == content


def test_memory_against_depth_needs_several_depths(content: str) -> None:
    assert "Memory against depth: saved for backward" in content
    assert "No arm was run on nets of several depths" in html(arm("backprop", [0.9]))


def test_a_result_without_success_or_baseline() -> None:
    with pytest.raises(BadValue, match="no row of this result succeeded"):
        html([row("backprop", 0, status="error", reason="x")])
    assert "so there is no comparison" in html(arm("mono_forward", [0.9, 0.8]))


@contextmanager
def as_nobody() -> Iterator[None]:
    """The superuser may write anywhere: be another one for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "report.html").write_text("old")
    folder.chmod(0o500)
    with as_nobody(), pytest.raises(BadValue, match=r"report\.html: the report cannot be written there"):
        write(sample(), folder / "report.html")
    folder.chmod(0o700)
    assert (folder / "report.html").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["report.html"]


def test_the_command_line_writes_the_page_of_several_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sample()
    for name, some in (("a", rows[:7]), ("b", rows[7:])):
        results = Results(tmp_path / name)
        with results.writing():
            for one in some:
                results.append(one)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["report", *folders, "--html", str(tmp_path / "x.html"), "--targets", "0.9", "0.95"]) == 0
    assert "x.html" in capsys.readouterr().out
    content = (tmp_path / "x.html").read_text()
    assert all(one["cell_id"] in content for one in rows if one["status"] == "ok")
    assert main(["report", folders[0]]) == 0
    assert (tmp_path / "a" / "report.html").exists()
    assert main(["report", folders[0], folders[0]]) == 2
    assert "has two successful rows" in capsys.readouterr().err
