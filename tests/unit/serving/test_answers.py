"""The server answers what the commands write, in any company."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ds_seq.api.models import load
from ds_seq.commands import generate
from ds_seq.serving.models import ServedModel
from tests.unit.serving.conftest import RUNS, Serve

TEXT = (RUNS.parent / "text" / "test.en").read_text(encoding="utf-8").splitlines()[:12]
TEXT[4] = ""


def by_command(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The lines that `ds-seq generate --format jsonl` writes."""
    (folder / "in").write_text("".join(f"{line}\n" for line in TEXT), encoding="utf-8")
    files = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--format", "jsonl"]
    assert generate.main([str(RUNS / "moe"), *files, *options]) == 0
    return [json.loads(line) for line in (folder / "out").read_text("utf-8").splitlines()]


def translated(client: TestClient, **request: Any) -> list[dict[str, Any]]:
    answer = client.post("/translate", json=request)
    assert answer.status_code == 200, answer.text
    lines: list[dict[str, Any]] = answer.json()["lines"]
    return lines


def compare(served: list[dict[str, Any]], written: list[dict[str, Any]]) -> None:
    """The same texts, and scores but for rounding in batches of other shapes."""
    assert len(served) == len(written)
    for line, expected in zip(served, written, strict=True):
        assert line["source"] == expected["source"]
        assert [h["text"] for h in line["hypotheses"]] == [
            h["text"] for h in expected["hypotheses"]
        ]
        for found, wanted in zip(line["hypotheses"], expected["hypotheses"], strict=True):
            assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)
            if wanted.get("alignment") is not None:
                pairs = " ".join(f"{a}-{b}" for a, b in found["alignment"])
                assert pairs == wanted["alignment"]
            if found["tokens"] is not None:
                scores = [token["score"] for token in found["tokens"]]
                assert scores == pytest.approx(wanted["token_scores"], abs=1e-5)


def test_many_at_once_get_what_generate_writes(serve: Serve, tmp_path: Path) -> None:
    written = by_command(tmp_path, "--n-best", "2", "--align")
    client = serve(wait=0.02)
    whole = translated(client, text=TEXT, n_best=2, align=True, tokens=True)
    compare(whole, written)
    with ThreadPoolExecutor(12) as pool:
        single = pool.map(lambda line: translated(client, text=line, n_best=2, align=True), TEXT)
        compare([line for (line,) in single], written)
    figures = client.get("/metrics").text
    batches = float(figures.split("ds_seq_batch_sentences_count ")[1].split()[0])
    assert batches < 1 + len(TEXT) - 1, "requests at the same time share batches"


def test_samples_belong_to_the_number_of_a_line(serve: Serve, tmp_path: Path) -> None:
    options = ["--sampling", "true", "--seed", "3", "--n-best", "2"]
    search = {"sampling": True, "seed": 3}
    client = serve(wait=0.02)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(translated, client, text=TEXT, n_best=2, search=search)
                 for _ in range(2)]  # fmt: skip
        first, second = (each.result() for each in asked)
    assert first == second
    compare(first, by_command(tmp_path, *options))


def test_prefixes_and_phrases(serve: Serve, tmp_path: Path) -> None:
    prefixes = ["hier", "", "am Abend", *[""] * (len(TEXT) - 3)]
    phrases = [[], ["rote"], *[[] for _ in TEXT[3:]], ["alte", "Mann"]]
    (tmp_path / "p").write_text("".join(f"{line}\n" for line in prefixes), encoding="utf-8")
    rows = ("\t".join(row) for row in phrases)
    (tmp_path / "c").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    client = serve()
    given = [prefix or None for prefix in prefixes]
    by_prefix = translated(client, text=TEXT, prefix=given)
    assert by_prefix[0]["hypotheses"][0]["text"].startswith("hier")
    compare(by_prefix, by_command(tmp_path, "--prefix", str(tmp_path / "p")))
    by_phrase = translated(client, text=TEXT, constraints=phrases)
    assert "rote" in by_phrase[1]["hypotheses"][0]["text"]
    compare(by_phrase, by_command(tmp_path, "--constraints", str(tmp_path / "c")))


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name[7:], json.loads(data[6:])) for name, data in blocks]


def test_a_text_comes_sentence_by_sentence(serve: Serve) -> None:
    client = serve(queue=40)
    sentences = [line for line in TEXT * 5 if line]  # more than are searched ahead
    text = ". ".join(line.capitalize() for line in sentences[:50]) + "\n\n" + sentences[0]
    answer = client.post("/translate/stream", json={"text": text})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *found, last = events(answer.text)
    assert last == ("done", {}) and len(found) == len(sentences[:50]) + 1
    assert [data["paragraph"] for _, data in found] == [0] * (len(found) - 1) + [2]
    expected = translated(client, text=[data["line"]["source"] for _, data in found[:20]])
    compare([data["line"] for _, data in found[:20]], expected)
    assert events(client.post("/translate/stream", json={"text": " \n"}).text) == [last]


def test_an_explanation_adds_up(serve: Serve, models: list[ServedModel]) -> None:
    client = serve()
    (line,) = translated(client, text=TEXT[0], tokens=True)
    (best,) = line["hypotheses"]
    ids = [token["id"] for token in best["tokens"][:-1]]
    whole = client.post("/explain", json={"text": TEXT[0]}).json()
    for more in ({"target_ids": ids}, {"target": best["text"]}):
        again = client.post("/explain", json={"text": TEXT[0], **more}).json()
        assert [token["score"] for token in again["target"]] == pytest.approx(
            load(RUNS / "moe").score(TEXT[0], best["text"])[0].token_scores, abs=1e-5
        )
        if "target_ids" in more:
            assert again == whole
    assert whole["text"] == best["text"]
    assert whole["log_prob"] == pytest.approx(sum(t["score"] for t in whole["target"]))
    source, target = len(whole["source"]), len(whole["target"])
    for token in whole["target"]:
        probabilities = [math.exp(each["log_prob"]) for each in token["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1.001
        assert probabilities[0] >= math.exp(token["score"]) - 1e-6
    sizes = {"encoder": (source, source), "decoder": (target, target), "cross": (target, source)}
    for kind, (rows, columns) in sizes.items():
        for layer in whole["attention"][kind]:
            for head in layer:
                assert len(head) == rows and {len(row) for row in head} == {columns}
                assert all(sum(row) == pytest.approx(1, abs=0.001 * columns) for row in head)
    routers = [layer.gate for layer in models[0].runs[0].model.modules() if hasattr(layer, "gate")]
    assert len(whole["experts"]) == len(routers) > 1
    for layer, router in zip(whole["experts"], routers, strict=True):
        assert layer["side"] == {"e": "source", "d": "target"}[layer["name"][0]]
        assert len(layer["visits"]) == (source if layer["side"] == "source" else target)
        for visits in layer["visits"]:
            chosen = {visit["expert"] for visit in visits}
            assert len(chosen) == len(visits) == router.top_k and max(chosen) < router.num_experts
    dense = client.post("/explain", json={"text": TEXT[0], "model": "dense"}).json()
    assert dense["experts"] == [] and dense["model"] == "dense"
