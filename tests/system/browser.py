"""A real browser without a screen, for the tests of pages.

Needs Chromium, its driver and the package selenium. With `DS_SEQ_PICTURES=FOLDER` the tests leave
pictures to look at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="needs the package selenium")
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

__all__ = [
    "MARKS",
    "By",
    "Keys",
    "Page",
    "Select",
    "all_of",
    "colors",
    "opened",
    "picture",
    "pictures_of",
    "set_dark",
    "texts",
    "until",
]

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium, chromedriver"),
]
PICTURES = os.environ.get("DS_SEQ_PICTURES")
Page = Any  # a webdriver, which has no public types of its own for what is used here


@contextmanager
def opened(url: str, ready: Callable[[Page], object]) -> Iterator[Page]:
    """A page, once it is ready; at the end it has reported no error to the console."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    # nothing but the server can be reached
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get(url)
        until(driver, lambda: ready(driver))
        yield driver
        assert driver.get_log("browser") == []
    finally:
        driver.quit()


def until(page: Page, condition: Callable[[], object]) -> None:
    """Wait for a condition; elements that the page replaces meanwhile are looked up again."""
    wait = WebDriverWait(page, 60, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda _: condition())


def all_of(page: Page, selector: str) -> list[Any]:
    found: list[Any] = page.find_elements(By.CSS_SELECTOR, selector)
    return found


def texts(page: Page, selector: str) -> list[str]:
    """The texts of the elements, read at once: the page may replace them at any time."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(each => each.innerText.trim())"
    )
    found: list[str] = page.execute_script(script, selector)
    return found


def picture(page: Page, name: str, width: int) -> None:
    """Show the whole page at a width, which it must not exceed; keep a picture if wanted."""
    for _ in range(2):  # the height depends on the width
        height = page.execute_script("return document.documentElement.scrollHeight")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    if PICTURES is not None:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(Path(PICTURES) / f"{name}.png"))


def colors(page: Page) -> tuple[str, str]:
    body = page.find_element(By.TAG_NAME, "body")
    return body.value_of_css_property("background-color"), body.value_of_css_property("color")


def set_dark(page: Page) -> None:
    """Let the system prefer dark pages."""
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})


def pictures_of(page: Page, light: str, dark: str, phone: tuple[str, int]) -> None:
    """Show a page in light and dark colors, which differ, and at the width of a phone.

    Args:
        page: the page.
        light: name of the picture in light colors.
        dark: name of that in dark colors.
        phone: name of that of a phone, and its width.
    """
    picture(page, light, 1200)
    before = colors(page)
    set_dark(page)
    assert colors(page) != before
    picture(page, dark, 1200)
    picture(page, *phone)
