"""The application: paths, errors as JSON, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError

from ds_seq import __version__
from ds_seq.config.base import Config
from ds_seq.config.messages import findings
from ds_seq.config.yaml_file import dotted
from ds_seq.errors import UserError
from ds_seq.serving.gate import ALWAYS, Doorkeeper, Gate, error_body
from ds_seq.serving.requests import (
    Explanation,
    ExplanationRequest,
    Line,
    ModelAnswer,
    TextRequest,
    TranslationAnswer,
    TranslationRequest,
)
from ds_seq.serving.service import RequestError, Service
from ds_seq.serving.web import PAGE, PAGE_HEADERS, answer_errors
from ds_seq.text.sentences import Sentence

_BODIES: dict[str, type[Config]] = {
    "/translate": TranslationRequest,
    "/translate/stream": TextRequest,
    "/explain": ExplanationRequest,
}
_PATHS = frozenset({"/", "/models", "/openapi.json", *_BODIES})


class Sent(BaseModel):
    """A sentence of a text, as an event of a stream."""

    paragraph: int
    line: Line


def build_app(service: Service, doorkeeper: Doorkeeper) -> FastAPI:
    """Return the application, without the server that runs it."""
    app = FastAPI(
        title="ds_seq",
        version=__version__,
        description="Translations by models that ds_seq has trained or imported.",
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(
        Gate,
        doorkeeper=doorkeeper,
        figures=service.figures,
        paths=_PATHS,
        most_bytes=service.limits.request_bytes,
        seconds=service.limits.seconds,
    )
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(RequestError)(_request_error)
    answer_errors(app, _PATHS | ALWAYS)
    _add_answers(app, service)
    _add_state(app, service, doorkeeper)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    """Add the paths that models answer."""

    @app.post("/translate", response_model_exclude_none=False)
    async def translate(body: TranslationRequest, request: Request) -> TranslationAnswer:
        """Translate a sentence, or a list of sentences."""
        return await service.translate(body, request.is_disconnected)

    @app.post("/translate/stream", response_class=StreamingResponse)
    async def stream(body: TextRequest) -> StreamingResponse:
        """Translate a running text: an event `sentence` for each sentence, then `done`."""
        sentences = service.stream(body)
        first = await anext(sentences, None)
        return StreamingResponse(_events(first, sentences), media_type="text/event-stream")

    @app.post("/explain")
    async def explain(body: ExplanationRequest, request: Request) -> Explanation:
        """Return scores, candidates, attention and experts of each token of a pair."""
        return await service.explain(body, request.is_disconnected)

    @app.get("/models")
    async def models() -> list[ModelAnswer]:
        """Return the models of this server; the first one answers if a request names none."""
        return [model.description() for model in service.models.values()]


def _add_state(app: FastAPI, service: Service, doorkeeper: Doorkeeper) -> None:
    """Add the page and the paths for whoever runs the server."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return whether the server takes requests; status 503 if it is about to end."""
        state = "closing" if doorkeeper.is_closing else "ready"
        return JSONResponse({"status": state}, 503 if doorkeeper.is_closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return figures in the text format of Prometheus."""
        return Response(service.figures.text(), media_type="text/plain; version=0.0.4")


async def _events(
    first: tuple[Sentence, Line] | None, sentences: AsyncIterator[tuple[Sentence, Line]]
) -> AsyncIterator[str]:
    """Yield the events of a stream; an error is the last one."""
    try:
        if first is not None:
            yield _sentence(*first)
            async for sentence, line in sentences:
                yield _sentence(sentence, line)
        yield "event: done\ndata: {}\n\n"
    except (RequestError, UserError) as error:
        code = error.code if isinstance(error, RequestError) else "invalid_request"
        body = JSONResponse(error_body(code, str(error))).body
        yield f"event: error\ndata: {bytes(body).decode()}\n\n"


def _sentence(sentence: Sentence, line: Line) -> str:
    sent = Sent(paragraph=sentence.paragraph, line=line)
    return f"event: sentence\ndata: {sent.model_dump_json()}\n\n"


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is no valid request, with the messages that experiment files get."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}"
    kind = _BODIES.get(request.url.path)
    if first["type"] != "json_invalid" and kind is not None:
        message = _mistakes(kind, error.body) or message
    return JSONResponse(error_body("invalid_request", message), 400)


def _mistakes(kind: type[Config], body: Any) -> str:
    """Return what is wrong with a body, each mistake once."""
    if not isinstance(body, dict):
        return "the body should be a JSON object, sent with Content-Type: application/json"
    try:
        kind.model_validate(body)
    except ValidationError as error:
        found = (f"{dotted(path)}: {problem}" for path, problem in findings(error, body, kind))
        return "; ".join(dict.fromkeys(found))
    return ""


async def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error_body(error.code, str(error)), error.status, headers)
