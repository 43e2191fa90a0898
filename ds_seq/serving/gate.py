"""What happens to every request before and after it is answered: limits, counts, and the end.

Once the server is to end, requests that have arrived are answered and new ones get status 503.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ds_seq.serving.figures import Figures

ALWAYS = frozenset({"/health", "/metrics"})
"""Paths that are answered to the end, and whose requests do not keep a server alive."""
_OTHER = "other"


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return the JSON of an error."""
    return {"error": {"code": code, "message": message}}


class Doorkeeper:
    """Knows how many requests are being answered, and whether new ones may enter.

    Attributes:
        in_flight: number of requests that are being answered.
        is_closing: whether new requests are refused.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.is_closing = False


class Gate:
    """ASGI middleware that counts requests, bounds their bodies, and refuses them at the end.

    Args:
        app: the application.
        doorkeeper: the state that the server shares.
        figures: counts requests by path and status.
        paths: known paths; others are counted together.
        most_bytes: largest body.
        seconds: longest time in which a body has to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        doorkeeper: Doorkeeper,
        figures: Figures,
        paths: frozenset[str],
        most_bytes: int,
        seconds: float,
    ) -> None:
        self._app, self._doorkeeper, self._figures = app, doorkeeper, figures
        self._paths, self._most_bytes, self._seconds = paths, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(dict(scope["headers"]))
        self._doorkeeper.in_flight += 1
        try:
            if refusal is not None:
                await refusal(scope, receive, watched)
            else:
                await self._app(scope, self._bounded(receive), watched)
        finally:
            self._doorkeeper.in_flight -= 1
            path = scope["path"] if scope["path"] in self._paths else _OTHER
            self._figures.answered(path, status, time.monotonic() - started)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> JSONResponse | None:
        """Return the answer to a request that may not enter; None if it may."""
        if self._doorkeeper.is_closing:
            body = error_body("closing", "the server is about to end; ask another one")
            return JSONResponse(body, 503, {"Connection": "close", "Retry-After": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most_bytes:
            body = error_body("too_large", self._too_large())
            return JSONResponse(body, 413, {"Connection": "close"})
        return None

    def _too_large(self) -> str:
        return f"the body has more than {self._most_bytes:,} bytes; send less text at a time"

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that ends with an error where a body is too large or too slow."""
        received, is_whole = 0, False

        async def bounded() -> Message:
            nonlocal received, is_whole
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._seconds)
            except asyncio.TimeoutError:
                raise HTTPException(
                    408, f"the body did not arrive within {self._seconds:g} s"
                ) from None
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(413, self._too_large())
            is_whole = not message.get("more_body", False)
            return message

        return bounded
