"""The page in a real browser: it sorts, filters, stays silent, and asks for nothing but itself.

Needs Chromium with its driver (`apt-get install chromium chromium-driver`) and selenium
(`uv run --group browser pytest`), and is skipped without them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfree.bench.report import read_search, write
from tests.bench.report.samples import NASTY, sample, search

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine"),
    # What a browser and its driver leave open is not ours to close.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    write(sample(), path, searches=[read_search(search(folder / "study"))])
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get("about:blank")
    browser.get(address)
    return browser


def column(page: Any, table: str, number: int) -> list[str]:
    """The first lines of the visible cells."""
    script = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].filter((r) => !r.hidden)
        .map((r) => r.cells[arguments[1]].innerText.split("\\n")[0])"""
    found: list[str] = page.execute_script(script, table, number)
    return found


def head(page: Any, table: str, name: str) -> tuple[int, Any]:
    heads = page.find_elements("css selector", f"#{table} thead th")
    number = next(i for i, one in enumerate(heads) if one.text.startswith(name))
    return number, heads[number]


def press(page: Any, element: Any) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def test_a_click_sorts_up_then_down_then_not_at_all(page: Any) -> None:
    number, cell = head(page, "results", "test accuracy")
    before = column(page, "results", number)
    press(page, cell.find_element("tag name", "button"))
    assert cell.get_attribute("aria-sort") == "ascending"
    rising = [float(text.partition(" ")[0]) for text in column(page, "results", number)]
    assert rising == sorted(rising) and len(set(rising)) > 2
    press(page, cell.find_element("tag name", "button"))
    assert cell.get_attribute("aria-sort") == "descending"
    falling = [float(text.partition(" ")[0]) for text in column(page, "results", number)]
    assert falling == sorted(rising, reverse=True)
    press(page, cell.find_element("tag name", "button"))
    assert cell.get_attribute("aria-sort") == "none"
    assert column(page, "results", number) == before


def test_numbers_are_sorted_as_numbers_and_what_is_absent_is_last(page: Any) -> None:
    number, cell = head(page, "results", "against backprop")
    for _ in range(2):
        press(page, cell.find_element("tag name", "button"))
        texts = column(page, "results", number)
        absent = [i for i, text in enumerate(texts) if text == "–"]
        assert absent and absent == list(range(len(texts) - len(absent), len(texts)))
    values = [float(text.partition(" ")[0]) for text in texts if text != "–"]
    assert values == sorted(values, reverse=True)
    number, cell = head(page, "targets", "training time")
    press(page, cell.find_element("tag name", "button"))
    texts = column(page, "targets", number)
    reached = [float(text) for text in texts if text not in ("missed", "–")]
    assert len(reached) > 1 and reached == sorted(reached)
    # A target that was missed is infinitely dear; what a resumed run took is not known.
    rest = texts[len(reached) :]
    assert set(rest) == {"missed", "–"} and rest == sorted(rest, key=["missed", "–"].index)


def test_text_and_choice_filter_together(page: Any) -> None:
    all_rows = len(column(page, "results", 0))
    box = page.find_element("css selector", '[data-filter="results"]')
    count = page.find_element("css selector", '[data-count="results"]')
    box.send_keys("MONO matched")
    assert column(page, "results", 0) == ["●mono_forward"]
    assert count.text == f"1 of {all_rows} rows"
    box.clear()
    box.send_keys("no such thing")
    assert column(page, "results", 0) == []
    box.clear()
    box.send_keys(" ")
    assert len(column(page, "results", 0)) == all_rows
    choice = page.find_element("css selector", '[data-choose="comparisons"]')
    option = choice.find_elements("tag name", "option")[-1]
    page.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", choice)
    option.click()
    settings = set(column(page, "comparisons", 1))
    assert settings == {option.text} and len(column(page, "comparisons", 0)) > 0


def test_a_name_links_to_its_rows(page: Any) -> None:
    link = page.find_element("css selector", "#results tbody a")
    press(page, link)
    opened = page.find_elements("css selector", "details[open]")
    assert len(opened) == 1
    assert link.text in opened[0].text and sample()[0]["cell_id"] in opened[0].text


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_every_control_is_named(page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for control in page.find_elements("css selector", "input, select, button, summary, [role=region], svg"):
        assert control.accessible_name or not control.is_displayed()
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: Any, scheme: str) -> None:
    """The contrast of the text colours with their grounds is that of WCAG 2.1, level AA."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    names = ("ink", "muted", "accent", "better", "worse", "paper", "card", *(f"series-{i}" for i in range(9)))
    script = """const style = getComputedStyle(document.documentElement);
        return arguments[0].map((name) => style.getPropertyValue(name))"""
    colors = dict(zip(names, page.execute_script(script, [f"--{name}" for name in names]), strict=True))

    def light(name: str) -> float:
        parts = [int(colors[name].strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for ground in ("paper", "card"):
        for name in names:
            if name not in ("paper", "card"):
                high, low = sorted((light(name), light(ground)), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_console_is_empty_and_nothing_is_requested(browser: Any, address: str) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get("about:blank")
    browser.get(address)
    press(browser, head(browser, "results", "arm")[1].find_element("tag name", "button"))
    assert NASTY in browser.find_element("id", "results").text
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "about:"))} == {address}


def test_a_page_with_a_request_is_caught(browser: Any, tmp_path: Path) -> None:
    """The test above would see a request: here is a page that makes one."""
    path = tmp_path / "loud.html"
    path.write_text('<img src="picture.png"><script>console.error("x")</script>')
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert len(browser.get_log("browser")) >= 1
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert path.with_name("picture.png").as_uri() in asked
