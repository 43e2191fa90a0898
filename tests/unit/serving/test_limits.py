"""One clear error for each mistake, limits, and what a server says of itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ds_seq.serving.batcher import Batcher
from ds_seq.serving.figures import Figures
from ds_seq.serving.models import Question, Search, ServedModel
from ds_seq.serving.requests import TranslationRequest
from ds_seq.serving.service import Limits, RequestError, Service
from ds_seq.serving.web import PAGE
from tests.unit.serving.conftest import Serve

MISTAKES: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "text: missing"),
    ({"text": 3}, 400, "text: should be text or a list"),
    ({"text": "a", "nbest": 2}, 400, "nbest: unknown key (did you mean 'n_best'?)"),
    ({"text": "a", "n_best": 0}, 400, "n_best: "),
    ({"text": "a", "n_best": 9}, 400, "n_best 9: this server allows 8"),
    ({"text": "a", "n_best": 5}, 400, "n_best 5: the search keeps 3 hypotheses"),
    ({"text": "a", "model": "dens"}, 404, "no 'dens' (did you mean 'dense'?)"),
    ({"text": "a", "search": {"beem": 3}}, 400, "no such option (did you mean 'beam'?)"),
    ({"text": "a", "search": {"lm": "x"}}, 400, "search.lm: no such option"),
    ({"text": "a", "search": {"beam": "x"}}, 400, "search.beam: should be a whole number"),
    ({"text": "a", "search": {"beam": 99}}, 400, "search.beam 99: this server allows 8"),
    ({"text": "a", "target_lang": "fr"}, 400, "target_lang fr: moe has no language tags"),
    ({"text": "a", "target_tag": "<2x>"}, 400, "target_tag <2x>: is not one of"),
    ({"text": ["a", "b"], "prefix": ["x"]}, 400, "prefix: has 1 entries but there are 2"),
    ({"text": ["a", "b"], "prefix": [None, "\u20ac"]}, 400, "prefix[1]: '\u20ac' has characters"),
    ({"text": "a", "constraints": [["\u20ac"]]}, 400, "constraints[0]: '\u20ac' has characters"),
    ({"text": "a", "constraints": [["a\tb"]]}, 400, "constraints[0]: a phrase contains a tab"),
    ({"text": "a", "constraints": [["a"]], "search": {"sampling": True}}, 400, "combined"),
    ({"text": "the " * 99, "long_lines": "error"}, 400, "text[0]: longer than the 31 tokens"),
    ({"text": ["a"] * 101}, 413, "text: has 101 lines; this server takes 100 at a time"),
    ({"text": "x" * 100_000}, 413, "the body has more than 100,000 bytes"),
]


def test_each_mistake_gets_one_clear_answer(serve: Serve) -> None:
    client = serve()
    for request, status, words in MISTAKES:
        answer = client.post("/translate", json=request)
        error = answer.json()["error"]
        assert (answer.status_code, words in error["message"]) == (status, True), answer.text[:300]
        assert "\n" not in error["message"] and set(error) == {"code", "message"}
    for content, words in (("{", "the body is no JSON"), ("[1]", "should be a JSON object")):
        answer = client.post(
            "/translate", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    for method, path, status in (("GET", "/translate", 405), ("GET", "/nowhere", 404)):
        answer = client.request(method, path)
        assert answer.status_code == status and path in answer.json()["error"]["message"]
    for request, words in (
        ({"text": " "}, "text: is empty"),
        ({"text": "a", "target": "b", "target_ids": [3]}, "leave out one of them"),
        ({"text": "a", "target_ids": [100_000]}, "target_ids: should be at most"),
        ({"text": "a", "target_ids": [-1]}, "target_ids"),
        ({"text": "a", "target": "das " * 99}, "shorten"),
    ):
        answer = client.post("/explain", json=request)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    bad = client.post("/translate/stream", json={"text": "a", "n_best": 7})
    assert bad.status_code == 400 and "n_best 7" in bad.json()["error"]["message"]
    cut = client.post("/translate", json={"text": "the " * 99}).json()["lines"][0]
    assert cut["cut"] and cut["hypotheses"][0]["text"]


def test_a_body_without_a_length_is_bounded(serve: Serve) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(30):
            yield b"x" * 1000
        yield b'"}'

    client = serve(request_bytes=20_000)
    answer = client.post(
        "/translate", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413 and "20,000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_a_slow_answer_and_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(queue=3, seconds=0.2, wait=5.0)  # all wait for company that does not come
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/translate", json={"text": "a"}) for _ in range(2)]
        while client.app_state["doorkeeper"].in_flight < 2:
            pass
        busy = client.post("/translate", json={"text": ["a", "b"]})
        assert busy.status_code == 503 and busy.json()["error"]["code"] == "busy"
        assert busy.headers["retry-after"] == "1"
        for answer in waiting:
            assert answer.result().status_code == 504
    # their places are free again
    assert client.post("/translate", json={"text": ["a", "b", "c"]}).status_code == 504
    client.app_state["doorkeeper"].is_closing = True
    closing = client.post("/translate", json={"text": "a"})
    assert closing.status_code == 503 and closing.json()["error"]["code"] == "closing"
    assert client.get("/health").status_code == 503
    assert client.get("/metrics").status_code == 200

    def broken(kind: Search, items: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Search, "__call__", broken)
    answer = serve().post("/translate", json={"text": "a"})
    assert answer.status_code == 500 and "secret" not in answer.text


def test_who_has_gone_is_not_waited_for(models: list[ServedModel]) -> None:
    batcher = Batcher(1, 5.0, lambda *facts: None)
    service = Service(models, batcher, Limits(1000, 2, 60.0), Figures())

    async def gone() -> bool:
        assert batcher.num_waiting == 2
        return True

    for _ in range(2):  # the places of the first are free for the second
        with pytest.raises(RequestError) as error:
            asyncio.run(service.translate(TranslationRequest(text=["a", "b"]), gone))
        assert error.value.status == 499 and batcher.num_waiting == 0
    batcher.close()


@pytest.mark.parametrize(("search", "share"), [({}, 1), ({"beam": 6}, 2), ({"beam": 1}, 1)])
def test_wide_searches_get_small_batches(
    models: list[ServedModel], search: dict[str, Any], share: int
) -> None:
    (question,) = models[0].ask(TranslationRequest(text="a", search=search))
    assert isinstance(question, Question) and models[0].settings.beam == 3
    assert question.kind.most_size == models[0].settings.max_tokens // share
    assert question.kind.most_items == models[0].settings.max_sentences // share


def test_the_server_describes_itself(serve: Serve) -> None:
    client = serve()
    assert client.get("/health").json() == {"status": "ready"}
    models = client.get("/models").json()
    assert [(model["name"], model["experts"]) for model in models] == [
        ("moe", True),
        ("dense", False),
    ]
    schema = client.get("/openapi.json").json()
    assert {"/translate", "/translate/stream", "/explain", "/models", "/health"} <= {
        *schema["paths"]
    }
    client.post("/translate", json={"text": ["a", "b"]})
    client.get("/nowhere")
    figures = client.get("/metrics").text
    for line in (
        'ds_seq_requests_total{path="/translate",status="200"} 1.0',
        'ds_seq_requests_total{path="other",status="404"} 1.0',
        'ds_seq_lines_total{model="moe"} 2.0',
        "ds_seq_batch_sentences_count 1.0",
        "ds_seq_waiting_lines 0.0",
    ):
        assert line in figures


def test_the_page_needs_nothing_from_elsewhere(serve: Serve) -> None:
    client = serve()
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers[
        "content-security-policy"
    ]  # fmt: skip
    used = set(re.findall(r'(?:src|href)="(page/[\w.]+)"', page.text))
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/)", text), path
        assert client.get(f"/page/{path.name}").status_code == 200
        used |= {f"page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert used == {f"page/{path.name}" for path in PAGE.iterdir()} - {"page/index.html"}
