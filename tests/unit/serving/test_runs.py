"""The server of run folders: its answers, while runs are written, damaged and deleted."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ds_seq import files
from ds_seq.names import METRICS_FILE
from ds_seq.serving.runs.app import RUNS_PAGE, build_runs_app
from ds_seq.serving.runs.board import MOST_RUNS, Board
from ds_seq.text.samples import format_samples
from tests.fresh import words_printed_by
from tests.unit.reports.written_run import make_run


def make_experts(folder: Path) -> None:
    """A run with experts, whose translations change."""
    log = make_run(folder, "optimizer.lr=1e-3", updates=0)
    for update in (10, 20):
        figures = {
            "loss": 9.0 / update,
            "tokens": 500.0,
            "seconds_per_update": 3.6,
            "moe/layer0/load": [0.75, 0.25],
            "moe/layer0/entropy": 0.5,
            "layers": ["encoder 1"],
            "total_tokens": 50.0 * update,
            "tokens_per_second": 7.0,
        }
        log.record("train", update, figures)
        text = format_samples(["guten Tag"], [f"hello {update}"], ["good day"], 1)
        load = {"moe/layer0/load": [0.5, 0.5], "moe/layer0/load/de": [1.0, 0.0]}
        best = {"bleu": 1.0 * update, "best_by": "bleu", "best_score": 1.0 * update}
        log.record("valid", update, {"samples": text, **load, **best})
    log.end(20, "max_updates")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "dense").end(20, "error", RuntimeError("shapes differ"))
    make_experts(tmp_path / "deep" / "moe")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    app = build_runs_app(Board([folder]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, path: str, status: int = 200, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def rows(client: TestClient) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in ask(client, "/runs")["runs"]}


def test_the_table_follows_runs_that_grow_begin_and_end(client: TestClient, folder: Path) -> None:
    found = rows(client)
    assert found["dense"]["state"] == "crashed" and found["dense"]["error"] == "shapes differ"
    moe = found["deep/moe"]
    assert (moe["state"], moe["update"], moe["tokens"]) == ("finished", 20, 1000.0)
    assert (moe["best_by"], moe["best_score"]) == ("bleu", 20.0)
    log = make_run(folder / "new", updates=10)
    with files.Lock(folder / "new" / files.LOCK_FILE, "x", "y"):
        assert rows(client)["new"]["state"] == "running"
        log.record("train", 70, {"loss": 1.0})
        assert rows(client)["new"]["update"] == 70
    assert rows(client)["new"]["state"] == "crashed"
    shutil.rmtree(folder / "new")
    gone = rows(client)["new"]
    assert gone["state"] == "deleted" and gone["update"] == 70 and "is gone" in gone["error"]
    assert ask(client, "/curves", run="new", figure="loss", x="updates")["curves"] == []
    shutil.rmtree(folder / "deep")
    shutil.rmtree(folder / "dense")
    assert {row["state"] for row in rows(client).values()} == {"deleted"}


def test_only_settings_that_differ_are_answered(client: TestClient, folder: Path) -> None:
    found = ask(client, "/differences")
    assert found["settings"] == {"optimizer.lr": {"dense": "0.0005", "deep/moe": "0.001"}}
    (folder / "dense" / "history.json").write_text("{")
    found = ask(client, "/differences", run=["dense", "deep/moe"])
    assert found["settings"] == {} and found["without"] == ["dense"]


def test_curves_and_their_table_are_those_of_the_log(client: TestClient, folder: Path) -> None:
    names = ask(client, "/figures", run="deep/moe")
    assert {"loss", "valid/bleu"} <= {*names["names"]} and names["best"] == ["valid/bleu"]
    of_layers = [name for name in names["names"] if "layer" in name]
    assert of_layers == ["moe/layer0/entropy"]
    found = ask(
        client, "/curves", run=["deep/moe", "dense"], figure=["loss", "valid/best"], x="tokens"
    )
    points = {(each["run"], each["figure"]): (each["x"], each["y"]) for each in found["curves"]}
    assert points["deep/moe", "loss"] == ([500.0, 1000.0], [0.9, 0.45])
    assert points["deep/moe", "valid/best"] == ([500.0, 1000.0], [10.0, 20.0])
    with (folder / "deep" / "moe" / METRICS_FILE).open("ab") as file:
        file.write(b'{"kind": "train", "upd\n{"kind": "train", "update": 30, "loss": 0.1, "time"')
    again = ask(client, "/curves", run="deep/moe", figure="loss", x="updates")
    assert again["damaged"] == {"deep/moe": 1} and again["curves"][0]["x"] == [10.0, 20.0]
    assert rows(client)["deep/moe"]["error"] == "metrics.jsonl: 1 line is no record"
    text = client.get("/curves.csv", params={"run": "deep/moe", "figure": "loss"}).text
    assert list(csv.reader(io.StringIO(text))) == [
        ["run", "figure", "updates", "tokens", "hours", "value"],
        ["deep/moe", "loss", "10.0", "500.0", "0.01", "0.9"],
        ["deep/moe", "loss", "20.0", "1000.0", "0.02", "0.45"],
    ]
    drawn = client.get("/curves.svg", params={"run": "deep/moe", "figure": "loss", "x": "hours"})
    assert drawn.text.count("<svg") == 1 and drawn.headers["content-type"] == "image/svg+xml"


def test_loads_of_experts_are_in_units_of_the_fair_share(client: TestClient) -> None:
    found = ask(client, "/experts", run="deep/moe", of="train")
    assert found["groups"] == ["train", "valid", "valid/de"] and found["updates"] == [10, 20]
    assert found["layers"] == [
        {
            "name": "encoder 1",
            "num_experts": 2,
            "shares": [[1.5, 0.5]] * 2,
            "entropy": [0.5, 0.5],
            "dropped": [None, None],
        }
    ]
    german = ask(client, "/experts", run="deep/moe", of="valid/de")
    assert german["of"] == "valid/de" and german["layers"][0]["shares"] == [[2.0, 0.0]] * 2
    assert ask(client, "/experts", run="dense", of="train")["layers"] == []
    assert ask(client, "/experts", run="deep/moe", of="nothing")["of"] == "train"


def test_translations_of_a_sentence_come_in_the_order_of_validations(client: TestClient) -> None:
    found = ask(client, "/samples", run="deep/moe")
    assert found["updates"] == [10, 20] and found["scores"] == [10.0, 20.0]
    assert found["sentences"] == [
        {"source": "guten Tag", "reference": "good day", "translations": ["hello 10", "hello 20"]}
    ]
    assert ask(client, "/samples", run="dense")["sentences"] == []


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("/curves", {"run": "../moe", "figure": "loss", "x": "updates"}, "run=../moe: no such run"),
        ("/samples", {"run": "dens"}, "did you mean 'dense'?"),
        ("/samples", {"run": "/etc"}, "run=/etc: no such run"),
        ("/experts", {"run": "dense"}, "of: Field required"),
        (
            "/curves",
            {"run": "dense", "figure": "loss", "x": "days"},
            "x: Input should be 'updates'",
        ),
        ("/figures", {"run": [str(n) for n in range(MOST_RUNS + 1)]}, "choose at most 28"),
        (
            "/curves.svg",
            {"run": "dense", "figure": "los", "x": "hours"},
            "have none of the figures",
        ),
    ],
)
def test_mistakes_are_one_line(
    client: TestClient, path: str, query: dict[str, Any], words: str
) -> None:
    error = ask(client, path, 400, **query)["error"]
    assert words in error["message"] and "\n" not in error["message"]


def test_no_path_leads_out_of_the_page(client: TestClient) -> None:
    for path in (
        "/runs-page/../app.py",
        "/runs-page/%2e%2e/app.py",
        "/page/..%2f..%2fapp.py",
        "/x",
    ):
        assert client.get(path).status_code == 404
    error = ask(client, "/x", 404)["error"]
    assert error["message"].startswith("no path /x; there are /, /curves")
    assert client.post("/runs").status_code == 405


def test_the_page_needs_nothing_from_elsewhere_and_the_server_no_torch(
    client: TestClient, folder: Path
) -> None:
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    used = set(re.findall(r'(?:src|href)="(runs-page/[\w./]+|page/[\w.]+)"', page.text))
    for path in RUNS_PAGE.glob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://", text), path
        used |= {f"runs-page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
        used |= {name.lstrip("./") for name in re.findall(r'from "(\.\./page/[\w.]+)"', text)}
    assert all(client.get(f"/{name}").status_code == 200 for name in used)
    own = {f"runs-page/{path.relative_to(RUNS_PAGE)}" for path in RUNS_PAGE.rglob("*.*")}
    assert own - {"runs-page/runs.html"} <= used
    paths = ask(client, "/openapi.json")["paths"]
    assert {"/runs", "/differences", "/curves", "/experts", "/samples"} <= {*paths}
    code = (
        "from pathlib import Path; from ds_seq.serving.runs.app import build_runs_app\n"
        "from ds_seq.serving.runs.board import Board\n"
        f"board = Board([Path({json.dumps(str(folder))})]); build_runs_app(board); board.table()\n"
        "import sys; print(*sys.modules)"
    )
    assert not {"torch", "numpy", "deepspeed", "matplotlib"} & {*words_printed_by(code)}
