"""What the servers share: the files of a page, and mistakes answered as JSON with one line."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ds_seq.errors import UserError
from ds_seq.serving.gate import error_body

PAGE = Path(__file__).parent / "page"
# the page needs nothing from elsewhere, and nothing else may use it
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "slow_body", 413: "too_large"}


def answer_errors(app: FastAPI, paths: Set[str]) -> None:
    """Let an application answer mistakes of its users and errors of its own as JSON.

    Args:
        app: the application.
        paths: the paths it has, for messages.
    """

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code, message = _CODES.get(error.status_code, "refused"), error.detail
        if error.status_code == 404:
            message = f"no path {request.url.path}; there are {', '.join(sorted(paths))}"
        elif error.status_code == 405:
            message = f"{request.url.path} takes no {request.method}"
        return JSONResponse(error_body(code, message), error.status_code, error.headers)

    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(UserError)(_user_error)
    app.exception_handler(Exception)(_internal_error)


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("invalid_request", "; ".join(str(error).splitlines())), 400)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    body = error_body("internal", "an error of the server; its log says more")
    return JSONResponse(body, 500)
