"""`ds-seq generate` by many processes: the text of one process, and no deadlocks.

Dense models and models with experts, on 2 and 4 ranks. The ranks start once and go through all
cases; one case more goes through a real launcher.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ds_seq import distributed
from ds_seq.distributed import group
from ds_seq.errors import run_command
from ds_seq.generate import main
from ds_seq.models import build_model
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.distributed.harness import run_distributed
from tests.ports import free_port
from tests.system.commands import run, script
from tests.unit.runs.made import experiment, write_run

SEARCH = ("--beam", "3", "--max-len-a", "0.3", "--max-len-b", "3")
SMALL = ("--max-tokens", "100")  # several batches per rank, in different numbers
MANY = 17
SIZES = {"nothing": 0, "one": 1, "few": 3, "many": MANY, "full": MANY, "empty": 4}
"""Lines of the texts: of `many` one is empty, of `empty` all."""
OPTIONS = (
    ("--sampling", "true"),
    ("--n-best", "3", "--format", "tsv"),
    ("--prefix", "FOLDER/prefix"),
)


class Case(NamedTuple):
    """One call of the command."""

    text: str
    model: str = "moe"
    spread: int = 1
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For a file."""
        words = [self.text, self.model, str(self.spread), *self.more]
        return "_".join(words).replace("--", "").replace("/", "_")


def cases(world_size: int) -> list[Case]:
    """All that `world_size` ranks shall do."""
    made = [Case(text, spread=world_size) for text in SIZES if text != "full"]
    made += [Case("many", spread=world_size, more=more) for more in OPTIONS]
    made += [Case("full"), Case("few"), Case("many")]
    if world_size == 4:  # two groups of two ranks, each with all experts
        return [*made, Case("many", spread=2), Case("many", "dense")]
    return [*made, *(Case(text, "dense") for text in ("nothing", "few", "many", "full"))]


ON_FOUR = [
    *(Case(text, spread=4) for text in ("nothing", "few", "many")),
    Case("many", spread=4, more=OPTIONS[1]),
    Case("many", spread=2),
    Case("many"),
    Case("many", "dense"),
]
"""Of `cases(4)`: two ranks go through all texts and options by default."""


class Work(NamedTuple):
    """Inputs of the cases; `runs` is read-only."""

    texts: Path
    runs: dict[str, Path]

    def arguments(self, case: Case, output: Path, spread: int) -> list[str]:
        """Of the command, for a case."""
        files = ["--input", str(self.texts / case.text), "--output", str(output)]
        layout = ["--expert-parallel", str(spread)]
        more = [word.replace("FOLDER", str(self.texts)) for word in case.more]
        return [str(self.runs[case.model]), *files, *layout, *SEARCH, *SMALL, *more]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Texts, a dense model and one with experts; untrained, but of strong opinions."""
    folder = tmp_path_factory.mktemp("work")
    write_toy(folder, 200, 10)
    vocab = train_vocab([folder / "train.en", folder / "train.de"], folder / "vocab", 130)
    words = (folder / "train.en").read_text(encoding="utf-8").split()
    lines = [" ".join(words[7 * i : 7 * i + 1 + 5 * i % 17]) for i in range(MANY)]
    for name, size in SIZES.items():
        kept = {"full": lines, "empty": ["", " ", "", ""]}.get(name, [*lines[:4], "", *lines[5:]])
        (folder / name).write_text("".join(f"{line}\n" for line in kept[:size]))
    beginnings = [" ".join(line.split()[: i % 4]) for i, line in enumerate(lines)]
    (folder / "prefix").write_text("".join(f"{line}\n" for line in beginnings))
    runs = {
        "dense": _write_model(folder / "dense", vocab, {}),
        "moe": _write_model(folder / "moe", vocab, {"moe": {"num_experts": 4, "top_k": 2}}),
    }
    return Work(folder, runs)


def _write_model(folder: Path, vocab: SentencePieceTokenizer, section: dict[str, Any]) -> Path:
    config = experiment(section)
    model = build_model(config.model, len(vocab), 1, 0, seed=3)
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return write_run(folder, config, vocab, {1: model})


@contextmanager
def _one_group() -> Iterator[None]:
    """Let the command leave the group of processes as it is, for the next case."""
    leave, group.shutdown = group.shutdown, lambda: None
    try:
        yield
    finally:
        group.shutdown = leave


def _translate(work: Work, todo: Sequence[Case], folder: Path) -> list[int]:
    """Go through all cases; returns their exit codes."""
    with _one_group():
        return [
            run_command(main, work.arguments(case, folder / case.name, case.spread))
            for case in todo
        ]


def _alone(work: Work, todo: Sequence[Case], folder: Path) -> None:
    """The same by one process, to which it is all one where experts would be."""
    for case in {case._replace(spread=1) for case in todo}:
        assert run_command(main, work.arguments(case, folder / case.name, 1)) == 0


@pytest.fixture(scope="module")
def alone(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one process writes in each case, under the name with `spread` 1."""
    folder = tmp_path_factory.mktemp("alone")
    run_distributed(_alone, 1, work, cases(2), folder)
    return folder


@pytest.mark.parametrize(
    ("world_size", "todo"),
    [(2, cases(2)), (4, ON_FOUR), pytest.param(4, cases(4), marks=pytest.mark.slow)],
)
def test_every_layout_writes_what_one_process_writes(
    work: Work, alone: Path, tmp_path: Path, world_size: int, todo: list[Case]
) -> None:
    codes = run_distributed(_translate, world_size, work, todo, tmp_path)
    assert codes == [[0] * len(todo)] * world_size
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(case.name for case in todo)
    for case in todo:
        found = (tmp_path / case.name).read_text()
        expected = (alone / case._replace(spread=1).name).read_text()
        if case.spread > 1 and "tsv" in case.more:
            # experts that get the rows of several ranks at once may sum them in another order
            (found, scores), (expected, others) = _without_scores(found), _without_scores(expected)
            assert scores == pytest.approx(others, abs=5e-6), case.name
        assert found == expected, case.name
    translated = (tmp_path / Case("many").name).read_text().splitlines()
    assert len(translated) == MANY and translated[4] == "" and len(set(translated)) > MANY // 2


def _without_scores(table: str) -> tuple[str, list[float]]:
    """Line numbers and texts, and the scores."""
    rows = [row.split("\t") for row in table.splitlines()]
    texts = [f"{line}\t{text}" for line, _, text in rows]
    return "\n".join(texts), [float(score) for _, score, _ in rows]


class Times(NamedTuple):
    """Of the batches of one rank, by a clock that all processes of a machine share."""

    started: list[float]
    found: list[float]


def _wait_for(condition: Path) -> None:
    deadline = time.monotonic() + 20
    while not condition.exists():
        assert time.monotonic() < deadline, "the others wait for this rank"
        time.sleep(0.01)


def _translate_timed(work: Work, case: Case, output: Path, slow: int, num_batches: int) -> Times:
    """Translate; the rank `slow` begins when the others have done as many batches as they have."""
    rank, others = distributed.rank(), set(range(distributed.world_size())) - {slow}
    search, times = BeamSearch.search, Times([], [])

    def timed(self: BeamSearch, *args: Any, **options: Any) -> Any:
        if rank == slow:
            for other in others:
                _wait_for(output.with_name(f"{output.name}.{other}.through"))
        times.started.append(time.monotonic())
        results = search(self, *args, **options)
        times.found.append(time.monotonic())
        if len(times.found) == num_batches:
            output.with_name(f"{output.name}.{rank}.through").touch()
        return results

    BeamSearch.search = timed  # type: ignore[method-assign]
    try:
        assert run_command(main, work.arguments(case, output, 1)) == 0
    finally:
        BeamSearch.search = search  # type: ignore[method-assign]
    return times


NOBODY = -1


def _hold_each_back(work: Work, todo: Sequence[Case], folder: Path) -> list[Times]:
    """The times of each case without a slow rank, then with each rank the slow one."""
    all_times = []
    with _one_group():
        for case in todo:
            size = 0
            for slow in (NOBODY, *range(distributed.world_size())):
                output = folder / f"{case.model}.{slow}"
                all_times.append(_translate_timed(work, case, output, slow, size))
                size = len(all_times[-1].found)
    return all_times


def test_no_rank_waits_for_a_slow_one(work: Work, alone: Path, tmp_path: Path) -> None:
    """Without spread experts, ranks meet when each has its share: one may start after the rest."""
    todo = [Case("full", "dense"), Case("full", "moe")]
    times = run_distributed(_hold_each_back, 2, work, todo, tmp_path)
    calls = [(case, slow) for case in todo for slow in (NOBODY, 0, 1)]
    for (case, slow), ranks in zip(calls, zip(*times, strict=True), strict=True):
        assert all(len(rank.found) > 1 for rank in ranks)
        if slow != NOBODY:
            assert ranks[1 - slow].found[-1] <= ranks[slow].started[0]
        written = tmp_path / f"{case.model}.{slow}"
        assert written.read_bytes() == (alone / case.name).read_bytes()


def test_processes_of_a_launcher(work: Work, alone: Path, tmp_path: Path) -> None:
    case = Case("many", spread=2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    port = ["--master_port", str(free_port())]
    command = [*launcher, *port, script("generate")]
    finished = run([*command, *work.arguments(case, tmp_path / "out", 2)], 60).check()
    assert (tmp_path / "out").read_bytes() == (alone / Case("many").name).read_bytes()
    assert finished.err.count("2 process(es)") == 1
    assert os.listdir(tmp_path) == ["out"]
