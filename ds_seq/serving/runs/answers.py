"""What the server of run folders answers; the OpenAPI schema is made of this.

Shapes: `E` experts, `N` points in time.
"""

from __future__ import annotations

from pydantic import BaseModel, Field


class Row(BaseModel):
    """A run in the table."""

    name: str
    state: str = Field(
        description="`running`, `finished`, `stopped`, `crashed`, `diverged`, or `deleted`: its "
        "folder was there before."
    )
    update: int
    last_update: int | None = Field(description="Update at which it ends if nothing ends it.")
    best_by: str | None = Field(description="Figure that decides which checkpoint is best.")
    best_score: float | None
    tokens_per_second: float | None
    tokens: float | None = Field(description="Target tokens that it has been trained on.")
    parameters: int | None
    eta_seconds: float | None
    seen: float | None = Field(description="Time of the last record, in seconds since 1970.")
    error: str = Field(description="The error that has ended it, or what is wrong with its files.")


class Table(BaseModel):
    """All runs."""

    folders: list[str] = Field(description="The folders that are searched.")
    runs: list[Row]


class Differences(BaseModel):
    """The settings in which runs differ."""

    runs: list[str]
    settings: dict[str, dict[str, str]] = Field(
        description="Dotted key -> name of a run -> its value as text."
    )
    without: list[str] = Field(description="Runs whose settings cannot be read.")


class FigureNames(BaseModel):
    """Figures that at least one of some runs has."""

    names: list[str]
    best: list[str] = Field(description="Those that decide which checkpoints are best.")


class CurvePoints(BaseModel):
    """A figure of a run."""

    run: str
    figure: str
    x: list[float]
    y: list[float]


class Curves(BaseModel):
    """Figures of several runs."""

    axis: str
    curves: list[CurvePoints]
    damaged: dict[str, int] = Field(
        description="Number of lines of a run's `metrics.jsonl` that are no records, if any."
    )


class LayerLoads(BaseModel):
    """The shares of a layer's experts over time."""

    name: str
    num_experts: int
    shares: list[list[float]] = Field(
        description="(N, E) share of the assignments of each expert, times E: 1 is its fair share."
    )
    entropy: list[float | None] = Field(
        description="(N) mean entropy of the router in nats; null where it is not recorded."
    )
    dropped: list[float | None] = Field(description="(N) share of the assignments that is dropped.")


class ExpertMaps(BaseModel):
    """Loads of all layers of a run."""

    run: str
    of: str = Field(description="Which tokens are counted, one of `groups`.")
    groups: list[str] = Field(
        description="`train`; `valid`, the validation text; `valid/<file>`, one of its files, "
        "which have a language each where there are several."
    )
    updates: list[int]
    layers: list[LayerLoads]


class Sentence(BaseModel):
    """A sentence, and what it was translated as at each validation."""

    source: str
    reference: str | None
    translations: list[str | None]


class Samples(BaseModel):
    """The translations of a run's validations."""

    run: str
    updates: list[int]
    scores: list[float | None] = Field(description="The deciding figure at these updates.")
    best_by: str
    sentences: list[Sentence]
