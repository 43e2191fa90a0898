"""`ds-seq pseudo-label` with a small untrained teacher: search, resumption, messages."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from ds_seq.commands import pseudo_label
from ds_seq.commands.arguments.pseudo_label import build_parser
from ds_seq.commands.pseudo_label import main
from ds_seq.config.generation import GenerationConfig
from ds_seq.data.batch import pad_rows
from ds_seq.data.shards import ShardReader, ShardWriter
from ds_seq.distill.work_folder import WorkFolder
from ds_seq.errors import EXIT_USER_ERROR, run_command
from ds_seq.generation.build import build_search
from ds_seq.models import build_model
from ds_seq.runs.open import load_run
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import toy_pairs
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

NUM_PAIRS = 30
MAX_POSITIONS = 40
EMPTY, LONG, LONGEST = 7, 11, 12
SEARCH = ("--beam", "3", "--max-len-a", "0", "--max-len-b", "9", "--max-sentences", "4")
Pairs = list[tuple[list[int], list[int]]]


def write_split(
    folder: Path, split: str, vocab: SentencePieceTokenizer, count: int, seed: int
) -> None:
    """Shards of generated text; ``train`` has sources empty, as long as can be, and one longer."""
    options = {"vocab_hash": vocab.fingerprint, "vocab_size": len(vocab), "languages": ("en", "de")}
    with ShardWriter(folder, split, shard_size=11, **options) as writer:  # type: ignore[arg-type]
        for number, texts in enumerate(toy_pairs(count, seed)):
            source, target = map(vocab.encode, texts)
            if split == "train":
                lengths = {EMPTY: 0, LONG: MAX_POSITIONS - 1, LONGEST: MAX_POSITIONS}
                source = (source * 9)[: lengths.get(number, len(source))]
            writer.add([*source, vocab.symbols.eos], [*target, vocab.symbols.eos])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teachers ``run`` and ``other``, and a data folder ``data``."""
    folder = tmp_path_factory.mktemp("lab")
    text = [line for pair in toy_pairs(60) for line in pair]
    (folder / "text").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    (folder / "data").mkdir()
    vocab = train_vocab([folder / "text"], folder / "data" / "vocab.model", 300, "bpe")
    write_split(folder / "data", "train", vocab, NUM_PAIRS, 1)
    write_split(folder / "data", "valid", vocab, 5, 2)
    config = experiment({"max_positions": MAX_POSITIONS}, shard_size=8)
    for name, seed in (("run", 3), ("other", 4)):
        models = {n: build_model(config.model, len(vocab), 1, 0, seed=seed * n) for n in (1, 2)}
        for model in models.values():  # far from uniform, so that nothing is nearly equal
            for parameter in model.parameters():
                parameter.data *= 3
        write_run(folder / name, config, vocab, models)
    return folder


def label(lab: Path, out: Path, *arguments: object) -> int:
    command = [lab / "run", "--data", lab / "data", "--out", out, *SEARCH, *arguments]
    return run_command(main, [str(word) for word in command])


def pairs(folder: Path, split: str = "train") -> Pairs:
    reader = ShardReader(
        folder, split, SentencePieceTokenizer.load(folder / "vocab.model").fingerprint
    )
    reader.check(full=True)
    return [(reader[n][0].tolist(), reader[n][1].tolist()) for n in range(len(reader))]


def content(folder: Path) -> dict[str, bytes]:
    """Every file by name, in folders too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def searched(lab: Path, num_best: int) -> list[list[Hypothesis]]:
    """What the search of `ds-seq generate` finds for each source, one by one."""
    run = load_run(lab / "run", "best")
    settings = GenerationConfig(beam=3, max_len_a=0, max_len_b=9)
    search = replace(
        build_search(settings, run.tokenizers.symbols, MAX_POSITIONS), num_best=num_best
    )
    sources = [source for source, _ in pairs(lab / "data")]
    return [search.search(run.model, *pad_rows([source], 1))[0] for source in sources]  # type: ignore[arg-type]


@pytest.mark.parametrize("num_best", [1, 3])
def test_labels_are_what_the_search_finds(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_best: int
) -> None:
    assert label(lab, tmp_path / "new", "--n-best", num_best) == 0
    expected = [
        (source, [*hypothesis.tokens, 2])
        for row, ((source, _), found) in enumerate(
            zip(pairs(lab / "data"), searched(lab, num_best), strict=True)
        )
        for hypothesis in found
        if row not in (EMPTY, LONGEST) and hypothesis.tokens
    ]
    assert pairs(tmp_path / "new") == expected
    assert len({tuple(target) for _, target in expected}) > len(expected) // 2
    printed = capsys.readouterr().out
    assert f"decoded {NUM_PAIRS - 2} sentences in" in printed
    assert f"train: {len(expected)} labels of {NUM_PAIRS - 2} sentences and 0 original" in printed
    for reason in ("1  sources longer than the teacher's 40 tokens", "1  empty sources"):
        assert f"left out           {reason}\n" in printed


def test_the_new_folder_is_complete_and_the_old_one_is_untouched(lab: Path, tmp_path: Path) -> None:
    before = content(lab)
    assert label(lab, tmp_path / "a" / "new", "--original", 1) == 0
    new = tmp_path / "a" / "new"
    assert content(lab) == before
    assert pairs(new, "valid") == pairs(lab / "data", "valid")
    assert pairs(new)[-NUM_PAIRS:] == pairs(lab / "data")
    assert {path.name.split(".")[0] for path in new.iterdir()} == {"train", "valid", "vocab"}
    assert (new / "vocab.model").read_bytes() == (lab / "data" / "vocab.model").read_bytes()
    manifest = ShardReader(new, "train").manifest
    assert manifest.languages == ("en", "de") and manifest.shards[0].pairs == 8


def test_another_split_may_be_labeled(lab: Path, tmp_path: Path) -> None:
    assert label(lab, tmp_path / "new", "--split", "valid") == 0
    new = tmp_path / "new"
    assert pairs(new) == pairs(lab / "data")
    sources = [source for source, _ in pairs(lab / "data", "valid")]
    assert [source for source, _ in pairs(new, "valid")] == sources
    assert pairs(new, "valid") != pairs(lab / "data", "valid")


class Stop(Exception):
    """In place of a kill."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[list[int]]]:
    """Lets a later search stop before a batch; answers with the list of sources to be searched."""
    real = BeamSearch.search

    def after(batches: int | None) -> list[list[int]]:
        seen: list[list[int]] = []
        left = [batches]

        def search(self: BeamSearch, model: object, src: Tensor, *more: object) -> object:
            if left[0] is not None:
                if left[0] == 0:
                    raise Stop
                left[0] -= 1
            seen.extend([[i for i in row if i != 1] for row in src.tolist()])
            return real(self, model, src, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(BeamSearch, "search", search)
        return seen

    return after


Stopping = Callable[[int | None], list[list[int]]]
FILTERED = ("--n-best", 2, "--min-chrf", 5, "--min-score", -8, "--original", 0.5)


def test_going_on_gives_the_same_bytes_and_searches_nothing_twice(
    lab: Path, tmp_path: Path, stopping: Stopping
) -> None:
    whole, new = tmp_path / "whole", tmp_path / "new"
    everything = stopping(None)
    assert label(lab, whole, *FILTERED) == 0
    seen: list[list[int]] = []
    for batches in (0, 2, 3):
        part = stopping(batches)
        with pytest.raises(Stop):
            label(lab, new, *FILTERED)
        assert not (new / "train.manifest.json").exists()
        seen += part
    with open(new / "pseudo-labels.work" / "journal.00000", "ab") as file:
        file.write(b"half a record")
    rest = stopping(None)
    assert label(lab, new, *FILTERED) == 0
    assert rest and sorted(seen + rest) == sorted(everything)
    assert len(everything) == NUM_PAIRS - 2
    labels = len(pairs(new)) - NUM_PAIRS // 2
    assert 5 < labels < 2 * (NUM_PAIRS - 2) - 5, "the filters drop some and keep some"
    assert content(new) == content(whole)


def test_filters_mixing_and_batches_may_change_on_the_way(
    lab: Path, tmp_path: Path, stopping: Stopping, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    stopping(3)
    with pytest.raises(Stop):
        label(lab, new)
    seen = stopping(None)
    assert label(lab, new, "--min-score", "999", "--max-sentences", 3) == EXIT_USER_ERROR
    assert len(seen) == NUM_PAIRS - 2 - 3 * 4
    assert "not one of 28 hypotheses is left" in capsys.readouterr().err
    seen = stopping(None)
    assert label(lab, new, "--original", 1) == 0
    assert seen == [], "all of it was decoded"
    assert (
        f"decoded 0 sentences in 0.0 s (0.0 sentences/s, 1 process(es)); {NUM_PAIRS - 2} were"
        in (capsys.readouterr().out)
    )
    assert label(lab, tmp_path / "whole", "--original", 1) == 0
    assert content(new) == content(tmp_path / "whole")


def test_a_kill_while_shards_are_written_leaves_no_split_and_costs_nothing(
    lab: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise Stop

    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", stop)
        patch.setattr(ShardWriter, "discard", stop)  # as if killed: its temporary files stay
        with pytest.raises(Stop):
            label(lab, new)
    assert not (new / "train.manifest.json").exists() and list(new.glob(".train.*.tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "remove", stop)
        with pytest.raises(Stop):
            label(lab, new)
    seen = stopping(None)
    assert label(lab, new) == 0 and not seen
    assert label(lab, tmp_path / "whole") == 0
    assert content(new) == content(tmp_path / "whole")


def test_another_number_of_ranks_resumes(lab: Path, tmp_path: Path, stopping: Stopping) -> None:
    """Journals of other ranks are read by any rank; see tests/system for real ranks."""
    new = tmp_path / "new"
    everything = stopping(None)
    assert label(lab, tmp_path / "whole") == 0
    first = stopping(3)
    with pytest.raises(Stop):
        label(lab, new)
    work = new / "pseudo-labels.work"
    (work / "journal.00000").rename(work / "journal.00005")
    rest = stopping(None)
    assert label(lab, new) == 0
    assert sorted(first + rest) == sorted(everything)
    assert content(new) == content(tmp_path / "whole")


@pytest.fixture
def begun(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A labeling in which all is decoded and no shard written."""

    def stop(*args: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(pseudo_label, "finish", stop)
        with pytest.raises(Stop):
            label(lab, tmp_path / "begun")
    return tmp_path / "begun"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--beam", 4), "beam 3, now 4;"),
        (("--length-penalty", 0.5), "length-penalty 1.0, now 0.5;"),
        (("--n-best", 2), "n-best 1, now 2;"),
        (("--checkpoint", "last"), "teacher "),
        (("--dtype", "bf16"), "dtype fp32, now bf16;"),
        (("--split", "valid"), "split train, now valid;"),
        (("--beam", 4, "--n-best", 4), "n-best 1, now 4; beam 3, now 4;"),
    ],
)
def test_what_was_begun_with_other_settings_is_left_alone(
    lab: Path,
    begun: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    words: str,
) -> None:
    before = content(begun)
    assert label(lab, begun, *arguments) == EXIT_USER_ERROR
    assert content(begun) == before
    error = capsys.readouterr().err
    assert f"--out {begun}: was begun with " in error and words in error
    assert "settings.json says to resume, or another --out\n" in error and error.count("\n") == 1


def test_other_weights_or_data_under_the_same_name_are_noticed(
    lab: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run", "data"):
        shutil.copytree(lab / name, tmp_path / name)
    assert label(tmp_path, tmp_path / "moved") == 0, "the names do not matter"
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(lab / "other", tmp_path / "run")
    assert label(tmp_path, begun) == EXIT_USER_ERROR
    assert "begun with teacher " in capsys.readouterr().err
    write_split(
        tmp_path / "data",
        "train",
        SentencePieceTokenizer.load(lab / "data" / "vocab.model"),
        NUM_PAIRS,
        3,
    )
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(lab / "run", tmp_path / "run")
    assert label(tmp_path, begun) == EXIT_USER_ERROR
    assert "begun with data " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "data", "new"), "nowhere: no such run folder"),
        (("data", "data", "new"), "not a run folder"),
        (("run", "nowhere", "new"), "nowhere: no such data folder"),
        (("run", "foreign", "new"), "made with vocabulary"),
        (("run", "data", "new", "--split", "test"), "found here: train, valid"),
        (("run", "data", "new", "--checkpoint", "update_7"), "no checkpoint 'update_7'"),
        (("run", "data", "data"), "--out data: lies in the data folder"),
        (("run", "data", "data/deep/new"), "--out data/deep/new: lies in the data folder"),
        (("run", "data", "text"), "--out text: is a file"),
        (("run", "data", "foreign"), "--out foreign: holds data already"),
        (("run", "data", "new", "--n-best", "0"), "--n-best 0"),
        (("run", "data", "new", "--n-best", "6"), "the search keeps 5 hypotheses; raise --beam"),
        (("run", "data", "new", "--best-metric", "bleu"), "--best-metric: there is nothing"),
        (("run", "data", "new", "--original", "-1"), "--original -1.0"),
        (("run", "data", "new", "--max-ratio", "0.5"), "--max-ratio 0.5"),
        (("run", "data", "new", "--beam", "0"), "--beam"),
        (("run", "data", "new", "--device", "abacus"), "--device abacus"),
        (("run", "data", "new", "--expert-parallel", "2"), "--expert-parallel 2"),
        (("run", "data", "new", "--min-rouge2", "10"), "rouge2: needs the package rouge-score"),
    ],
)
def test_mistakes_are_one_line(
    lab: Path,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "foreign" in arguments and not (lab / "foreign").exists():
        (lab / "foreign").mkdir()
        foreign = train_vocab([lab / "text"], lab / "foreign" / "vocab.model", 200, "bpe")
        write_split(lab / "foreign", "train", foreign, 3, 1)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.chdir(lab)
    before = content(lab)
    run, data, out, *others = arguments
    assert run_command(main, [run, "--data", data, "--out", out, *others]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and words in captured.err
    assert content(lab) == before and not (lab / "new").exists()


def test_a_finished_labeling_is_not_written_over(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(lab, tmp_path / "new") == 0
    before = content(tmp_path)
    capsys.readouterr()
    assert label(lab, tmp_path / "new") == EXIT_USER_ERROR
    assert "holds data already; remove it or give another one" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_settings_identify_their_subject(lab: Path, begun: Path) -> None:
    record = json.loads((begun / "pseudo-labels.work" / "settings.json").read_text())
    assert record["notes"]["data"] == str((lab / "data").resolve())
    assert Path(record["notes"]["checkpoint"]).name == "update_00000001"
    assert record["settings"]["beam"] == 3 and "max-tokens" not in record["settings"]


def test_options_of_the_search_are_those_of_the_config() -> None:
    actions = {action.dest: action for action in build_parser()._actions}
    for name, field in GenerationConfig.model_fields.items():
        meaning = str(field.description).rstrip(".").replace("%", "%%")
        assert str(actions[name].help).startswith(f"{meaning} (")
