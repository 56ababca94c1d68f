"""The report in a real browser: opened from disk, at desktop and phone width, light, dark and
printed."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.page import (
    RECIPES,
    digits,
    write_failed,
    write_run,
    write_shards,
    write_sweep,
    write_unfinished,
)

from hpc_mlp.cli import main

pytestmark = pytest.mark.browser

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        chromium = None
    if not chromium or not driver:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have chromium, chromium-driver and selenium")
        pytest.skip("needs chromium, chromium-driver and selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options=options, service=Service(driver))
    yield driven
    driven.quit()


@pytest.fixture(scope="module", params=[10, 100], ids=["10 classes", "100 classes"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("page")
    images = digits(request.param)
    write_shards(base / "shards", images)
    for variant in list(RECIPES)[: 4 if request.param == 10 else 1]:
        write_run(base / "runs", base / "shards", variant, 0, images)
    write_unfinished(base / "runs", base / "shards", "baseline", 1)
    write_failed(base / "runs", base / "shards", "batchnorm", 1)
    result = CliRunner().invoke(main, ["report", str(base / "runs")])
    assert result.exit_code == 0, result.output
    return base / "runs" / "report.html"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 runs of 100 classes: the names of five variants, and of the classes, are long."""
    base, plain = tmp_path_factory.mktemp("sweep"), digits(100)
    images = replace(plain, classes=tuple(f"class_of_the_digits_{name}" for name in plain.classes))
    write_shards(base / "shards", images)
    write_sweep(base / "runs", base / "shards", images)
    result = CliRunner().invoke(main, ["report", str(base / "runs")])
    assert result.exit_code == 0, result.output
    return base / "runs" / "report.html"


# What is cut off, scrolls on a wide screen, or runs over its neighbours: why, and its words.
MEASURED = """
const seen = e => e.checkVisibility({contentVisibilityAuto: true}), wrong = [];
const say = (why, e) => wrong.push(why + ': ' + e.textContent.trim().slice(0, 60));
document.querySelectorAll('details, input').forEach(e => { e.open = e.checked = true });
for (const e of document.querySelectorAll('main *:not(svg *)')) {
  if (!seen(e)) continue;
  const over = e.scrollWidth > e.clientWidth + 1 && e.clientWidth;
  if (over && ['hidden', 'clip'].includes(getComputedStyle(e).overflowX)) say('clipped', e);
  if (over && innerWidth > 1000 && e.matches('.scroll')) say('scrolls', e);
}
for (const e of document.querySelectorAll('td, th, figcaption, p, li, h2, h3, label, summary')) {
  const range = document.createRange();
  range.selectNodeContents(e);
  const [text, box] = [range.getBoundingClientRect(), e.getBoundingClientRect()];
  if (seen(e) && (text.right > box.right + 1 || text.left < box.left - 1)) say('runs over', e);
}
for (const svg of document.querySelectorAll('figure svg')) {
  if (!seen(svg)) continue;
  const all = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  const boxes = texts.map(t => t.getBoundingClientRect());
  boxes.forEach((a, i) => {
    if (a.left < all.left - 2 || a.right > all.right + 2 || a.bottom > all.bottom + 2)
      say('off the figure', texts[i]);
    for (let j = 0; j < i; j++) {
      const b = boxes[j], least = 0.15 * Math.min(a.width, a.height, b.width, b.height);
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > least &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > least)
        say(svg.ariaLabel + ': overlaps ' + texts[j].textContent, texts[i]);
    }
  });
}
return wrong;
"""


def show(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())


def screenshot(browser: Any) -> np.ndarray:
    data = browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))


def test_no_errors_and_no_requests(browser: Any, page: Path) -> None:
    browser.get("about:blank")
    # What the browser did at its start.
    browser.get_log("performance"), browser.get_log("browser")
    show(browser, page, 1200)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    }
    assert page.as_uri() in asked
    assert [url for url in asked - {page.as_uri()} if not url.startswith("data:")] == []
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0


@pytest.mark.parametrize("width", [320, 390, 800, 1200, 2200])
def test_page_never_scrolls_sideways(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # What is wider than the page can be scrolled to within its own box.
    lost = """return [...document.querySelectorAll('main table, main figure svg')].filter(e =>
        e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')).length"""
    assert browser.execute_script(lost) == 0


@pytest.mark.parametrize("width", [1280, 420])
def test_no_text_is_cut_or_runs_over_another(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    assert browser.execute_script(MEASURED) == []


@pytest.mark.parametrize("width", [1280, 420])
def test_nor_where_runs_and_names_are_many_and_long(browser: Any, sweep: Path, width: int) -> None:
    show(browser, sweep, width)
    assert browser.execute_script(MEASURED) == []


def test_of_many_rows_the_best_are_shown_and_the_others_on_request(
    browser: Any, sweep: Path
) -> None:
    show(browser, sweep, 1280)
    rows = """return [...document.querySelectorAll('#summary .folded tbody tr')]
        .filter(e => e.checkVisibility()).map(e => e.textContent)"""
    shown = browser.execute_script(rows)
    # The best by validation loss is the last by name, and as good as the others on test images.
    assert len(shown) == 21 and "★" in shown[-1] and "★" not in "".join(shown[:-1])
    browser.find_element("css selector", "#summary .folded input").click()
    assert len(browser.execute_script(rows)) == 30
    show(browser, sweep, 1280)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(browser.execute_script(rows)) == 30
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_short_cells_of_tables_are_one_line_on_a_phone(browser: Any, page: Path) -> None:
    """A narrow table scrolls. Folded, `2 done, 1 failed` made rows three lines high."""
    show(browser, page, 390)
    high = """return [...document.querySelectorAll('td:not(.long)')]
        .filter(e => e.checkVisibility())
        .map(e => e.clientHeight / parseFloat(getComputedStyle(e).lineHeight))
        .filter(h => h > 2).length"""
    assert browser.execute_script(high) == 0


def test_text_in_figures_can_be_read(browser: Any, page: Path) -> None:
    sizes = """return [...document.querySelectorAll('figure svg text')]
        .filter(t => t.textContent.trim())
        .map(t => [parseFloat(getComputedStyle(t).fontSize), t.getScreenCTM()])
        .map(([size, m]) => size * Math.hypot(m.a, m.b)).filter(size => size > 0)"""
    show(browser, page, 1200)
    desktop = np.array(browser.execute_script(sizes))
    show(browser, page, 390)
    phone = np.array(browser.execute_script(sizes))
    assert len(desktop) > 200
    assert np.median(desktop) >= 11 and desktop.min() >= 6.5
    assert np.median(phone) >= 6.5 and phone.min() >= 5.5


def test_dark_and_light(browser: Any, page: Path) -> None:
    brightness, ink = {}, {}
    for scheme in ("light", "dark"):
        show(browser, page, 1200, scheme)
        brightness[scheme] = float(np.median(screenshot(browser)))
        ink[scheme] = browser.execute_script(
            "return getComputedStyle(document.querySelector('#figure-val_loss text')).fill"
        )
    assert brightness["light"] > 240 and brightness["dark"] < 40
    assert ink["light"] != ink["dark"]
    browser.execute_script("document.getElementById('figure-val_loss').scrollIntoView()")
    # No white boxes behind the figures.
    assert np.mean(screenshot(browser) > 240) < 0.05


def test_print(browser: Any, page: Path) -> None:
    show(browser, page, 1200, "dark")
    pdf = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    )
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 4
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    # Ink on paper, whatever the screen's theme.
    assert np.median(screenshot(browser)) > 240
    screen = {
        "width": 686,
        "height": 1000,
        "deviceScaleFactor": 1,
        "mobile": False,
    }  # A4 less margins, in CSS pixels
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    cut = """return [...document.querySelectorAll('main table, main figure svg')]
        .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 687).length"""
    # Paper does not scroll.
    assert browser.execute_script(cut) == 0
    hidden = browser.execute_script(
        "return getComputedStyle(document.querySelector('nav')).display"
    )
    assert hidden == "none"
