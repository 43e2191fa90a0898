"""The application that shows run folders: paths, errors as JSON, and the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from ds_seq import __version__
from ds_seq.reports.curves import AXES, Axis
from ds_seq.reports.plots import draw_curves
from ds_seq.serving.gate import error_body
from ds_seq.serving.runs.answers import (
    Curves,
    Differences,
    ExpertMaps,
    FigureNames,
    Samples,
    Table,
)
from ds_seq.serving.runs.board import Board
from ds_seq.serving.web import PAGE, PAGE_HEADERS, answer_errors

RUNS_PAGE = Path(__file__).parent / "page"
_PATHS = frozenset(
    {
        "/",
        "/runs",
        "/differences",
        "/figures",
        "/curves",
        "/curves.csv",
        "/curves.svg",
        "/experts",
        "/samples",
        "/health",
        "/openapi.json",
    }
)
_MOST_POINTS = 2000

RunNames = Annotated[list[str], Query(alias="run", description="Names of runs; repeatable.")]
RunName = Annotated[str, Query(alias="run", description="Name of a run.")]
FigureChoice = Annotated[
    list[str],
    Query(
        alias="figure",
        description="Names of figures, see `/figures`; `valid/best` is that which decides which "
        "checkpoint is best; repeatable.",
    ),
]
AxisChoice = Annotated[Axis, Query(alias="x", description="What to draw over.")]


def build_runs_app(board: Board) -> FastAPI:
    """Return the application, without the server that runs it."""
    app = FastAPI(
        title="ds_seq runs",
        version=__version__,
        description="Runs of ds_seq: their state, settings, figures, experts and translations.",
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.exception_handler(RequestValidationError)(_invalid)
    answer_errors(app, _PATHS)
    _add_answers(app, board)
    _add_files(app, board)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/runs-page", StaticFiles(directory=RUNS_PAGE), name="runs page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(RUNS_PAGE / "runs.html", headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return that the server takes requests."""
        return JSONResponse({"status": "ready"})

    return app


def _add_answers(app: FastAPI, board: Board) -> None:
    """Add the paths that are answered with JSON; each runs in a thread, as it reads files."""

    @app.get("/runs")
    def runs() -> Table:
        """Return all runs: state, updates, best score, speed, last error."""
        return board.table()

    @app.get("/differences")
    def differences(run: RunNames = []) -> Differences:  # noqa: B006  (FastAPI copies it)
        """Return the settings in which runs differ; without names, of all runs."""
        return board.differences(run)

    @app.get("/figures")
    def figures(run: RunNames) -> FigureNames:
        """Return the names of the figures that runs have."""
        return board.figure_names(run)

    @app.get("/curves")
    def curves(run: RunNames, figure: FigureChoice, x: AxisChoice) -> Curves:
        """Return figures over time, each with a few thousand points: extremes are kept."""
        return board.curves(run, figure, x, _MOST_POINTS)

    @app.get("/experts")
    def experts(run: RunName, of: str) -> ExpertMaps:
        """Return the share of the tokens of each expert of each layer over time."""
        return board.experts(run, of)

    @app.get("/samples")
    def samples(run: RunName) -> Samples:
        """Return the translations of a few sentences at each validation."""
        return board.samples(run)


def _add_files(app: FastAPI, board: Board) -> None:
    """Add the paths that are answered with a file to keep."""

    @app.get("/curves.csv", response_class=Response)
    def table(run: RunNames, figure: FigureChoice) -> Response:
        """Return all points of figures as CSV: run, figure, update, tokens, hours, value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "figure", *AXES, "value"])
        with board.lock:  # the three see the same points
            by_axis = [board.curves(run, figure, axis, None).curves for axis in AXES]
        for same in zip(*by_axis, strict=True):
            points = zip(*(curve.x for curve in same), same[0].y, strict=True)
            writer.writerows([same[0].run, same[0].figure, *point] for point in points)
        headers = {"Content-Disposition": 'attachment; filename="curves.csv"'}
        return Response(text.getvalue(), media_type="text/csv", headers=headers)

    @app.get("/curves.svg", response_class=Response)
    def picture(run: RunNames, figure: FigureChoice, x: AxisChoice) -> Response:
        """Return a drawing as `ds-seq plot` makes it; needs matplotlib."""
        with TemporaryDirectory() as folder, board.lock:
            path = Path(folder) / "curves.svg"
            draw_curves(board.run_curves(run), list(dict.fromkeys(figure)), x, path)
            content = path.read_bytes()
        headers = {"Content-Disposition": 'attachment; filename="curves.svg"'}
        return Response(content, media_type="image/svg+xml", headers=headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a query that misses something or has a value that is not allowed."""
    assert isinstance(error, RequestValidationError)
    found = (f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return JSONResponse(error_body("invalid_request", "; ".join(dict.fromkeys(found))), 400)
