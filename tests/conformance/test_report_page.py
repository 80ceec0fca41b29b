"""The page in a real browser: filtered as a reader does, a failure opened and read, nothing complained about."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.reporting import REASON, large_report, small_report
from msgspec.structs import replace
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from xattn_conformance.reports.html import html
from xattn_conformance.result import SUITE

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1366,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs a real browser, Chromium and its driver: make browser")
    options = ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(small_report()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Chrome]:
    """The small report, freshly opened; afterwards the console must be empty."""
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def rows(page: Chrome) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, "tr.case")


def statuses(page: Chrome) -> list[str]:
    return [row.find_element(By.TAG_NAME, "button").text for row in rows(page)]


def fragment(page: Chrome) -> str:
    return page.current_url.partition("#")[2]


def test_the_first_screen_says_what_matters(page: Chrome) -> None:
    header = page.find_element(By.TAG_NAME, "header").text
    assert f"attention Core {SUITE}: 34/36, 1 waiver on 1 case, 1 failed" in header
    assert "Obtained on the vendor's hardware" in header
    canaries = page.find_element(By.ID, "canaries")
    assert "zero out.zmax 311.5 8" in canaries.text
    assert canaries.rect["y"] + canaries.rect["height"] < 900
    assert "ACME X1" in page.find_element(By.CLASS_NAME, "environment").text


def test_failures_come_first_then_what_passed(page: Chrome) -> None:
    found = statuses(page)
    assert len(found) == 60
    assert found[:5] == ["FAIL", "FAIL", "ERROR", "WAIVED", "PASS"]
    assert found == sorted(found, key=["FAIL", "ERROR", "WAIVED", "PASS", "UNSUPPORTED"].index)


def test_typing_filters_and_shows_in_the_address(page: Chrome) -> None:
    page.find_element(By.ID, "q").send_keys("WINDOW needle")
    assert len(rows(page)) == 3
    assert all("window=15:0" in row.text and "needle" in row.text for row in rows(page))
    assert page.find_element(By.ID, "shown").text == "3 of 60 cases"
    assert fragment(page) == "q=WINDOW+needle"
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert len(rows(page)) == 60
    assert fragment(page) == ""


def test_a_cell_of_the_matrix_filters(page: Chrome) -> None:
    cell = page.find_element(By.XPATH, "//table[@id='matrix']//tr[th='window']/td[3]/a")
    assert cell.text == "2/4"
    everything = page.find_element(By.XPATH, "//table[@id='matrix']//tr[th='all cases']/td[2]")
    assert everything.text.split("\n") == ["15/16 of 20", "4 declined", "1 waived"]
    cell.click()
    WebDriverWait(page, 5).until(lambda page: len(rows(page)) == 4)
    assert statuses(page) == ["FAIL", "FAIL", "PASS", "PASS"]
    assert page.find_element(By.ID, "feature").get_attribute("value") == "window"
    assert fragment(page) == "feature=window&dtype=bfloat16"


def test_a_link_shows_what_it_was_taken_of(page: Chrome, address: str) -> None:
    page.get("about:blank")
    page.get(f"{address}#status=FAIL&q=window+poison&dtype=bfloat16")
    assert statuses(page) == ["FAIL"]
    assert page.find_element(By.ID, "status").get_attribute("value") == "FAIL"
    assert page.find_element(By.ID, "q").get_attribute("value") == "window poison"
    assert page.find_element(By.CLASS_NAME, "detail").is_displayed()  # a lone case is open
    page.get(f"{address}#dtype=int8")
    WebDriverWait(page, 5).until(lambda page: rows(page) == [])
    assert page.find_element(By.ID, "more").text == "No case matches."
    assert page.find_element(By.ID, "dtype").get_attribute("value") == "int8"


def test_a_failure_can_be_read(page: Chrome) -> None:
    rows(page)[0].click()
    detail = page.find_element(By.CLASS_NAME, "detail")
    assert detail.find_element(By.CLASS_NAME, "worst").text == (
        "out[1, 3, 16, 5] = 0.53125, golden 0.498046875, sigma 0.00091"
    )
    failed = next(result for result in small_report().cases if result.status == "FAIL")
    assert detail.find_element(By.CLASS_NAME, "reproduce").text == failed.reproduce
    assert [row.text for row in detail.find_elements(By.CSS_SELECTOR, ".checks tr.bad")] == ["out.zrow 37.25 4\nover"]
    assert len(detail.find_elements(By.CSS_SELECTOR, ".checks tbody tr")) == len(failed.checks)
    assert failed.heat is not None
    cells = detail.find_elements(By.CSS_SELECTOR, ".heat rect:not(.ground)")
    assert len(cells) == len(failed.heat.rows) * len(failed.heat.heads)
    (hot,) = detail.find_elements(By.CSS_SELECTOR, ".heat .over title")
    assert re.fullmatch(r"from query \d+, head 4: 9.31 of the limit", hot.get_attribute("textContent") or "")
    rows(page)[0].click()
    assert page.find_elements(By.CLASS_NAME, "detail") == []


@pytest.mark.parametrize(("leave", "says"), [("resolve", "Copied"), ("reject", "Selected")])
def test_a_command_is_copied_or_where_that_is_forbidden_selected(page: Chrome, leave: str, says: str) -> None:
    stub = "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.%s(); }"
    page.execute_script(stub % leave)
    rows(page)[0].click()
    button = page.find_element(By.CSS_SELECTOR, ".command button")
    button.click()
    WebDriverWait(page, 5).until(lambda _: button.text == says)
    command = page.find_element(By.CLASS_NAME, "reproduce").text
    assert page.execute_script("return window.copied") == command
    if says == "Selected":
        assert page.execute_script("return getSelection().toString()").strip() == command


def test_text_of_a_backend_stays_text(page: Chrome) -> None:
    page.find_element(By.ID, "status").send_keys("ERROR")
    assert statuses(page) == ["ERROR"]
    detail = page.find_element(By.CLASS_NAME, "detail")
    assert "RuntimeError: </script> & <b>" in detail.find_element(By.CLASS_NAME, "message").text
    assert "acme/kernel.py" in detail.text


def test_text_around_the_table_stays_text() -> None:
    loud = "<script>alert(1)</script>"
    page = html(replace(small_report(), backend=loud, invalid=loud, environment={loud: loud}, profile=loud))
    assert loud not in page
    assert (
        page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 7
    )  # twice in the title and heading, claim, banner, ...


def test_declared_reasons_are_shown(page: Chrome) -> None:
    page.find_element(By.ID, "status").send_keys("UNSUPPORTED")
    rows(page)[0].click()
    assert f"softcap=50.0 (supported: off). {REASON['hint']}" in page.find_element(By.CLASS_NAME, "detail").text


def test_nothing_is_fetched(page: Chrome) -> None:
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_2500_cases_are_quick_and_small(browser: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_text(html(large_report()), encoding="utf-8")
    assert path.stat().st_size < 10e6
    browser.get(path.as_uri())
    loaded = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < 5000  # milliseconds, on a machine that may be busy
    assert len(rows(browser)) == 100
    assert browser.find_element(By.ID, "shown").text == "2500 of 2500 cases"
    browser.execute_script("document.getElementById('more').scrollIntoView()")
    WebDriverWait(browser, 5).until(lambda browser: len(rows(browser)) >= 200)
    browser.find_element(By.ID, "q").send_keys("window q337-")
    (row,) = rows(browser)
    assert "q337-k401" in row.text
    assert browser.get_log("browser") == []
