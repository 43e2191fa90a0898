"""The page of `ds-seq serve` in a real browser; see `tests/system/browser.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import browser
from tests.system.browser import (
    By,
    Keys,
    Page,
    Select,
    all_of,
    opened,
    pictures_of,
    texts,
    until,
)
from tests.system.test_serve import LINES, RUNS, served

pytestmark = browser.MARKS


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(RUNS / "moe", f"dense={RUNS / 'dense'}") as (_, found):
        yield found


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    ready = lambda page: "ready" in page.find_element(By.ID, "state").text  # noqa: E731
    with opened(f"{address}/", ready) as driver:
        yield driver


def translate(page: Page, text: str, count: int) -> None:
    """Type a text, press Ctrl+Enter, and wait for a number of hypotheses."""
    field = page.find_element(By.ID, "text")
    field.clear()
    field.send_keys(text)
    field.send_keys(Keys.CONTROL, Keys.ENTER)
    results = page.find_element(By.ID, "results")
    until(page, lambda: results.get_attribute("aria-busy") == "false")
    assert len(all_of(page, ".hypothesis")) == count


def test_two_models_side_by_side_and_a_closer_look(page: Page) -> None:
    Select(page.find_element(By.ID, "other")).select_by_visible_text("dense")
    translate(page, f"{LINES[0]}. The man paints small lamps", 2 * 2 * 3)
    assert texts(page, ".answers h2") == ["moe", "dense"]
    boxes = [box.rect for box in all_of(page, ".answers")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    whole = all_of(page, ".whole")[0].get_attribute("value")
    found = texts(page, ".answers:first-child .hypothesis .text")
    assert whole == f"{found[0]} {found[3]}", "the best ones as one text"
    scores = [float(text) for text in texts(page, ".sentence:first-of-type .score")[:3]]
    assert scores == sorted(scores, reverse=True)

    all_of(page, ".hypothesis")[0].click()
    until(page, lambda: all_of(page, "table.experts"))
    best = texts(page, ".hypothesis .text")[0]
    assert best in texts(page, "#look h2")[0]
    pieces = [text.split("\n")[0] for text in texts(page, "button.token")]
    assert "".join(pieces[:-1]).replace("\u2423", " ").strip() == best
    all_of(page, "button.token")[0].click()
    assert len(all_of(page, ".candidates tbody tr")) == 5
    until(page, lambda: len(all_of(page, ".words line")) == len(pieces) - 1)
    assert len(all_of(page, ".heat tbody tr")) == len(pieces)
    assert {*texts(page, ".experts tbody th")} == {"encoder 1", "decoder 1"}
    pictures_of(page, "light", "dark", ("phone", 320))
    boxes = [box.rect for box in all_of(page, ".answers")]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] < boxes[1]["y"]

    all_of(page, ".answers:last-child .hypothesis")[0].click()
    until(page, lambda: "dense" in "".join(texts(page, "#look h2")) and all_of(page, ".heat"))
    assert not all_of(page, "table.experts"), "a dense model has no experts"


def test_the_keyboard_is_enough(page: Page) -> None:
    active = page.switch_to.active_element
    assert active.get_attribute("id") == "text", "typing can begin at once"
    active.send_keys(LINES[0], Keys.CONTROL, Keys.ENTER)
    until(page, lambda: len(all_of(page, ".hypothesis")) == 3)
    assert not all_of(page, ".whole")[0].is_displayed(), "one sentence is whole already"
    reached = []
    for _ in range(12):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("class"))
        if reached[-1] == "hypothesis":
            break
    assert reached[-1] == "hypothesis"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(page, lambda: all_of(page, ".heat"))
    cell = all_of(page, ".heat td[tabindex='0']")[0]
    cell.send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    now = page.switch_to.active_element
    row = now.find_element(By.XPATH, "..").find_element(By.TAG_NAME, "th").text
    assert now.get_attribute("aria-label").startswith(f"{row} to ")
    assert now.get_attribute("aria-label") in texts(page, ".readout")
    assert len(all_of(page, ".heat td[tabindex='0']")) == 1
    head = page.find_element(By.CSS_SELECTOR, "[data-choice=head]")
    before = [cell.get_attribute("aria-label") for cell in all_of(page, ".heat tbody tr td")]
    head.send_keys(Keys.ARROW_DOWN)
    after = [cell.get_attribute("aria-label") for cell in all_of(page, ".heat tbody tr td")]
    assert before != after, "a head is not the mean of all"


def test_restrictions_mistakes_and_text_that_looks_like_markup(page: Page) -> None:
    page.find_element(By.CSS_SELECTOR, "details summary").click()
    page.find_element(By.ID, "prefix").send_keys("hier")
    translate(page, LINES[1], 3)
    assert all(text.startswith("hier") for text in texts(page, ".hypothesis .text"))
    page.find_element(By.ID, "prefix").clear()
    page.find_element(By.ID, "beam").send_keys("2")
    translate(page, LINES[1], 0)
    problem = page.find_element(By.ID, "error")
    assert "n_best 3: the search keeps 2 hypotheses" in problem.text
    page.find_element(By.ID, "beam").clear()
    markup = "<img src=x onerror=document.title='taken'>"
    translate(page, markup, 3)
    assert not problem.is_displayed() and page.title != "taken"
    assert texts(page, ".sentence > p")[0] == markup
    page.get_log("browser")  # the status 400 of the mistake is there
