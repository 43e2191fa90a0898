"""Answers to requests: models by name, a queue with limits, and errors with a status of HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ds_seq.plugins import nearest
from ds_seq.serving.batcher import Batcher
from ds_seq.serving.explaining import explanation_question
from ds_seq.serving.figures import Figures
from ds_seq.serving.models import Question, ServedModel
from ds_seq.serving.requests import (
    Explanation,
    ExplanationRequest,
    Line,
    TextRequest,
    TranslationAnswer,
    TranslationRequest,
)
from ds_seq.text.sentences import Sentence, split_sentences

_LOOK_EVERY = 0.5  # seconds, whether a client is still there
_AHEAD = 32  # sentences of a text that are searched at the same time

IsGone = Callable[[], Awaitable[bool]]
"""Returns whether the client has closed the connection."""


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: status code of HTTP.
        code: short name of the reason.
        message: what is wrong, in one line.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        request_bytes: largest body of a request.
        queue: most lines that are accepted and not answered yet.
        seconds: longest time for an answer; of a text, for each sentence.
    """

    request_bytes: int
    queue: int
    seconds: float


class Service:
    """Answers requests with models.

    Args:
        models: models with different names; the first one answers requests that name none.
        batcher: computes the batches.
        limits: limits of queue and time.
        figures: counts what is done.
    """

    def __init__(
        self, models: Sequence[ServedModel], batcher: Batcher, limits: Limits, figures: Figures
    ) -> None:
        self.models = {model.name: model for model in models}
        self.batcher, self.limits, self.figures = batcher, limits, figures
        self._num_lines = 0

    def model(self, name: str | None) -> ServedModel:
        """Return a model by name; None: the first.

        Raises:
            RequestError: there is no such model.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            hint = nearest(name, self.models)
            raise RequestError(404, "unknown_model", f"model: no {name!r}{hint}; there are {known}")
        return self.models[name]

    async def translate(self, request: TranslationRequest, is_gone: IsGone) -> TranslationAnswer:
        """Translate lines.

        Raises:
            RequestError: the model is unknown, too many lines wait, or it takes too long.
            UserError: the request is invalid.
        """
        model = self.model(request.model)
        count = 1 if isinstance(request.text, str) else len(request.text)
        with self._admitted(count):
            asked = await asyncio.to_thread(model.ask, request)
            lines = await self._answers(asked, is_gone)
        self.figures.translated(model.name, lines)
        return TranslationAnswer(model=model.name, lines=lines)

    async def explain(self, request: ExplanationRequest, is_gone: IsGone) -> Explanation:
        """Return what a model does with a pair; for errors see `translate`."""
        model = self.model(request.model)
        with self._admitted(1):
            question = await asyncio.to_thread(explanation_question, model, request)
            (answer,) = await self._answers([question], is_gone)
        assert isinstance(answer, Explanation)
        return answer

    def stream(self, request: TextRequest) -> AsyncIterator[tuple[Sentence, Line]]:
        """Translate a text; sentences come in their order, each as soon as it is there.

        Only some sentences are searched ahead, so a long text leaves room in the queue for others.
        Whoever calls this must take the first sentence, or the places in the queue stay taken.

        Raises:
            RequestError: see `translate`; also for a text whose first sentences find no room.
            UserError: the request is invalid.
        """
        model = self.model(request.model)
        sentences = list(split_sentences(request.text))
        options = request.model_dump(exclude={"text"})
        model.ask(TranslationRequest(text=[], **options))  # finds what is wrong before an answer
        ahead = min(len(sentences), _AHEAD, self.limits.queue)
        self._admit(ahead)
        return self._stream(model, sentences, options, ahead)

    async def _stream(
        self, model: ServedModel, sentences: list[Sentence], options: dict[str, Any], ahead: int
    ) -> AsyncIterator[tuple[Sentence, Line]]:
        waiting: list[asyncio.Future[Any]] = []
        try:
            done = 0
            for number in range(len(sentences) + ahead):
                if number < len(sentences):
                    request = TranslationRequest(text=sentences[number].text, **options)
                    waiting += self._submit(await asyncio.to_thread(model.ask, request))
                if number >= ahead - 1 and done < len(sentences):
                    (line,) = await self._finished([waiting.pop(0)], None)
                    self.figures.translated(model.name, [line])
                    yield sentences[done], line
                    done += 1
        finally:
            for future in waiting:
                future.cancel()
            self._num_lines -= ahead

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        self._admit(count)
        try:
            yield
        finally:
            self._num_lines -= count

    def _admit(self, count: int) -> None:
        most = self.limits.queue
        if count > most:
            raise RequestError(
                413,
                "too_many_lines",
                f"text: has {count:,} lines; this server takes {most:,} at a time",
            )
        if self._num_lines + count > most:
            raise RequestError(
                503, "busy", f"{self._num_lines:,} of {most:,} places are taken; try again later"
            )
        self._num_lines += count

    def _submit(self, asked: Sequence[Any]) -> list[asyncio.Future[Any]]:
        """Submit the questions among what was asked; answers that are there already stay."""
        loop, futures = asyncio.get_running_loop(), []
        for each in asked:
            if isinstance(each, Question):
                futures.append(asyncio.wrap_future(self.batcher.submit(*each)))
            else:
                ready = loop.create_future()
                ready.set_result(each)
                futures.append(ready)
        return futures

    async def _answers(self, asked: Sequence[Any], is_gone: IsGone) -> list[Any]:
        return await self._finished(self._submit(asked), is_gone)

    async def _finished(
        self, futures: list[asyncio.Future[Any]], is_gone: IsGone | None
    ) -> list[Any]:
        """Wait for answers; cancel them where nobody waits for them any longer."""
        deadline = time.monotonic() + self.limits.seconds
        pending: set[asyncio.Future[Any]] = set(futures)
        try:
            while pending:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RequestError(
                        504,
                        "timeout",
                        f"no answer within {self.limits.seconds:g} s; send less text",
                    )
                _, pending = await asyncio.wait(pending, timeout=min(left, _LOOK_EVERY))
                if pending and is_gone is not None and await is_gone():
                    raise RequestError(499, "gone", "the client has closed the connection")
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
