"""Ranks that are missing are named soon; the stores are real."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ds_seq.distributed import World
from ds_seq.distributed import roll_call as module
from ds_seq.distributed.roll_call import PATIENCE, roll_call
from ds_seq.errors import UserError
from tests.ports import free_port


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv(PATIENCE, "1")
    monkeypatch.setattr(module, "_FIRST_REPORT", 0.2)
    monkeypatch.setattr(module, "_NAME_PATIENCE", 0.0)
    yield


def _world(rank: int, port: int, size: int = 3) -> World:
    return World(rank, size, rank, size, "127.0.0.1", port)


def test_the_missing_rank_is_named_on_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "3")
    port, messages = free_port(), {}

    def call(rank: int) -> None:
        try:
            roll_call(_world(rank, port))
        except UserError as error:
            messages[rank] = str(error)

    second = threading.Thread(target=call, args=(1,))
    second.start()
    call(0)
    second.join()
    place = f"127.0.0.1:{port}"
    # on a busy machine, rank 1 may come after the first report
    waiting = rf"waiting at {re.escape(place)} for rank\(s\) (1, )?2 of 3"
    assert re.search(waiting, capsys.readouterr().err)
    assert f"rank 0: rank(s) 2 of 3 did not join at {place} within 3 s" in messages[0]
    assert "rank 1: " in messages[1] and PATIENCE in messages[1] or "has ended" in messages[1]


def test_all_that_come_are_let_in() -> None:
    port, stores = free_port(), []
    threads = [
        threading.Thread(target=lambda rank=rank: stores.append(roll_call(_world(rank, port))))
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 3


def test_a_rank_that_another_process_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    store = roll_call(_world(0, port, size=1))
    monkeypatch.setattr(module.os, "getpid", lambda: 1)
    with pytest.raises(UserError, match="is rank 0 at 127.0.0.1:.*another port"):
        roll_call(_world(0, port, size=1))
    del store


def test_nobody_at_the_address() -> None:
    with pytest.raises(UserError, match=r"rank 1: rank 0 did not answer at 127.0.0.1.*refused"):
        roll_call(_world(1, free_port()))


def test_something_else_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(UserError, match="what answers at .* is not rank 0 of a run"):
            roll_call(_world(1, server.getsockname()[1]))


def test_an_address_without_a_meaning() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot resolve MASTER_ADDR 'no.such.host.invalid'"):
        roll_call(World(1, 2, address="no.such.host.invalid", port=1))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "\N{SUPERSCRIPT TWO}", "9" * 20])
def test_a_time_without_sense(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PATIENCE, text)
    with pytest.raises(UserError, match=PATIENCE):
        roll_call(_world(0, free_port(), size=1))
