"""A request leaves nothing behind in a server."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

import ds_seq
from tests.unit.commands.test_rescore import write_lab

WARM_UP, REQUESTS = 120, 240
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"n_best": 2, "search": {"beam": 2}, "tokens": True, "align": True},
    {"search": {"sampling": True}},
    {"model": "missing"},
    {"search": {"beem": 1}},
)


@pytest.mark.slow
def test_objects_do_not_grow_with_the_requests(tmp_path: Path) -> None:
    client = pytest.importorskip("fastapi.testclient")
    write_lab(tmp_path)
    server = ds_seq.build_server(tmp_path / "dense", device="cpu")
    texts = (tmp_path / "src").read_text(encoding="utf-8").splitlines()

    def ask(count: int) -> int:
        for number in range(count):
            body = {"text": texts[number % len(texts)], **KINDS[number % len(KINDS)]}
            assert asking.post("/translate", json=body).status_code in (200, 400, 404)
        gc.collect()
        return len(gc.get_objects())

    with client.TestClient(server.app) as asking:
        before = ask(WARM_UP)
        assert ask(REQUESTS) - before < REQUESTS // 4
    server.close()
