"""The page of `ds-seq runs --serve` in a real browser; see `tests/system/browser.py`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_seq.text.samples import format_samples
from ds_seq.training.run_log import RunLog
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
from tests.system.test_serve import served
from tests.unit.reports.written_run import make_run

pytestmark = browser.MARKS
MARKUP = "<img src=x onerror=document.title='taken'>"
WORDS = "the small cat sat on the old mat".split()


def record(log: RunLog, update: int, is_moe: bool) -> None:
    """A record of training, and one of a validation at each fifth of them."""
    figures = {"loss": 9.0 / math.sqrt(update), "lr": 1e-3, "grad_norm": 0.5, "tokens": 100.0}
    loads = {f"moe/layer{n}/load": [0.4 + n / 10, 0.3, 0.2, 0.1 - n / 10] for n in range(2)}
    loads |= {f"moe/layer{n}/entropy": 1.2 for n in range(2)}
    names = {"layers": ["encoder 1", "decoder 1"]}
    log.record("train", update, {**figures, **(loads | names if is_moe else {})})
    if update % 50:
        return
    count = 2 + update // 50
    text = format_samples(["x", MARKUP], [" ".join(WORDS[:count]), "same"], ["y", MARKUP], 2)
    files = {f"moe/layer{n}/load/{file}": [0.1, 0.2, 0.3, 0.4] for n in range(2) for file in "ab"}
    valid = {"loss": 2.0, "bleu": update / 10, "best_by": "bleu", "best_score": update / 10}
    log.record("valid", update, {**valid, "samples": text, **(loads | files if is_moe else {})})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rate in {"dense": "5e-4", "moe": "1e-3", MARKUP.replace("/", ""): "2e-3"}.items():
        log = make_run(tmp_path / name, f"optimizer.lr={rate}", "name=x", updates=0)
        for update in range(10, 210, 10):
            record(log, update, is_moe=name == "moe")
        log.end(200, "max_updates")
    return tmp_path


@pytest.fixture
def page(folder: Path) -> Iterator[Page]:
    with served(folder, "--serve", command="runs") as (_, address):
        ready = lambda page: all_of(page, ".panel canvas")  # noqa: E731
        with opened(f"{address}/#run=dense&run=moe", ready) as driver:
            until(driver, lambda: all_of(driver, "#samples .sample") and all_of(driver, ".map"))
            yield driver


def choose(page: Page, part: str, key: str, text: str) -> None:
    Select(
        page.find_element(By.CSS_SELECTOR, f"#{part} [data-choice={key}]")
    ).select_by_visible_text(text)


def row(page: Page, name: str) -> str:
    return next((text for text in texts(page, "#runs tbody tr") if name in text), "")


def test_what_is_selected_is_shown_in_every_part(page: Page) -> None:
    assert len(all_of(page, "#runs tbody tr")) == 3
    assert len(all_of(page, "#runs tbody input:checked")) == 2
    assert "200 / 100" in row(page, "moe") and "bleu 20.00" in row(page, "moe")
    assert texts(page, "#differences tbody th") == ["optimizer.lr"]
    assert texts(page, "#differences tbody td")[:2] == ["0.0005", "0.001"]
    assert texts(page, ".panel h3")[:2] == ["loss", "valid/loss"]
    assert texts(page, ".legend li") == ["dense", "moe"]
    assert texts(page, ".map h4") == ["encoder 1", "decoder 1"]
    assert texts(page, ".loads tbody tr:first-child td")[:4] == ["1.60", "1.20", "0.80", "0.40"]
    rows = texts(page, ".sample tbody td")
    assert rows == [
        "the small cat",
        "the small cat sat",
        "the small cat sat on",
        "the small cat sat on the",
    ]
    assert texts(page, ".sample ins") == ["sat", "on", "the"]
    choose(page, "samples", "sentence", f"2: {MARKUP}")
    until(page, lambda: texts(page, ".sample dd") == [MARKUP, MARKUP])
    assert texts(page, ".sample tbody td") == ["same", *["as before"] * 3]
    choose(page, "maps", "of", "each file of the validation")
    until(page, lambda: texts(page, ".loads h4") == ["a", "b"])
    all_of(page, "#differences button")[0].click()
    until(page, lambda: "optimizer.lr" in texts(page, "#runs thead th"))
    assert "0.002" in row(page, "img src")
    pictures_of(page, "runs", "runs_dark", ("runs_phone", 360))
    assert page.title != "taken"


def test_the_keyboard_is_enough(page: Page) -> None:
    head = [each for each in all_of(page, "#runs thead button") if each.text.startswith("best")][0]
    head.send_keys(Keys.ENTER)
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    box = all_of(page, "#runs tbody input:not(:checked)")[0]
    box.send_keys(Keys.SPACE)
    until(page, lambda: len(all_of(page, ".legend li")) == 3)
    assert page.current_url.count("run=") == 3
    plot = all_of(page, ".plot")[0]
    plot.send_keys(Keys.HOME)
    plot.send_keys(Keys.ARROW_RIGHT)
    readout = all_of(page, ".panel .readout")[0]
    until(page, lambda: readout.text.startswith("updates 20: "))
    assert "dense 2.012 \u00b7 moe 2.012" in readout.text
    cell = all_of(page, ".loads td[tabindex='0']")[0]
    cell.send_keys(Keys.ARROW_RIGHT)
    now = page.switch_to.active_element
    assert now.get_attribute("aria-label") == (
        "encoder 1, expert 1: 1.2 of its fair share, 30% of the tokens"
    )
    slider = page.find_element(By.CSS_SELECTOR, "#maps input[type=range]")
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "update 10"
    for box in ("log-x", "log-y"):
        page.find_element(By.ID, box).send_keys(Keys.SPACE)
    until(page, lambda: all_of(page, ".panel canvas"))
    page.find_element(By.ID, "smoothing").send_keys(Keys.END)
    page.find_element(By.CSS_SELECTOR, "#values summary").send_keys(Keys.ENTER)
    until(page, lambda: texts(page, ".values caption")[:1] == ["loss"])
    assert texts(page, ".values tbody tr:first-child")[0].split() == ["10", *["2.846"] * 3]


def test_runs_are_followed_and_pictures_are_kept(page: Page, folder: Path) -> None:
    log = RunLog(folder / "dense", True, False, 400, 200)
    record(log, 210, is_moe=False)
    make_run(folder / "later", updates=10).end(10, "max_updates")
    until(page, lambda: "210 / 100" in row(page, "dense") and row(page, "later"))
    until(page, lambda: page.execute_script("return document.readyState") == "complete")
    shutil.rmtree(folder / "later")
    until(page, lambda: "deleted" in row(page, "later"))
    with (folder / "moe" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr\n{"kind": "train", "update": 220, "loss": 1.0}\n')
    until(page, lambda: "1 line is no record" in row(page, "moe"))
    kept = "function () { window.kept = this.download + this.href; }"
    page.execute_script(f"HTMLAnchorElement.prototype.click = {kept}")
    page.find_element(By.ID, "png").click()
    until(
        page, lambda: str(page.execute_script("return window.kept")).startswith("curves.pngblob:")
    )
    for part in ("svg", "csv"):
        link = page.find_element(By.ID, part).get_attribute("href")
        content = page.execute_script(
            "return fetch(arguments[0]).then((answer) => answer.text())", link
        )
        assert "<svg" in content if part == "svg" else content.startswith("run,figure,updates")
    page.find_element(By.ID, "select-none").click()
    until(page, lambda: not all_of(page, ".panel"))
    assert texts(page, "#maps .note") == ["Select one or more runs."]
