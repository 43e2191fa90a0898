"""The translation task: its data, and its score against raw text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds_seq.config.base import ExternalConfig
from ds_seq.config.data import DataConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.task import TranslationConfig
from ds_seq.data.shards import ShardWriter
from ds_seq.errors import UserError
from ds_seq.generation.build import build_limits, build_search
from ds_seq.generation.translate import ALONE, translate
from ds_seq.plugins import trusting
from ds_seq.scores.metric import find_metric
from ds_seq.scores.scoring import Scorer
from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.guides import Plain, SelectionMaker
from ds_seq.search.sampling import Sampling
from ds_seq.tasks import build_task
from ds_seq.tasks.translation import (
    TranslationTask,
    read_files,
    read_raw,
    spread,
)
from ds_seq.text.lines import PairPath, read_lines
from ds_seq.text.samples import format_samples
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.vocabulary import train_vocab
from tests.unit.search.table_model import EOS, PAD, SYMBOLS, TableModel, WordTokenizer, words
from tests.values import SHARD_SIZE, batch_limits, beam_search, draws

VOCAB = 9
CPU = torch.device("cpu")
SEARCH, LIMITS = beam_search(SYMBOLS, beam=2), batch_limits()
METRICS = [find_metric(name, "en", "metrics") for name in ("bleu", "chrf")]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> PairPath:
    source = write(tmp_path / "source", ["w4  w5", "w6", "w7 w8 w4"])
    return PairPath(source, write(tmp_path / "target", ["w5 w5", "w8 w4", "w6 w6 w6"]))


def make_task(folder: Path, *raw: PairPath) -> TranslationTask:
    files = {"train": [], "valid": list(raw)}
    return TranslationTask(
        folder, words(VOCAB), files, "en", 4, 5, rouge_stemmer=True, num_samples=5
    )


def write_shards(
    folder: Path, vocab_hash: str = WordTokenizer.fingerprint, split: str = "train"
) -> None:
    options = {"vocab_size": VOCAB, "languages": ("de", "en"), "shard_size": SHARD_SIZE}
    with ShardWriter(folder, split, vocab_hash=vocab_hash, **options) as writer:
        writer.add([4, 5, EOS], [6, EOS])
        writer.add([4, 5, 6, 7, EOS], [6, EOS])  # longer than make_task allows
        writer.add([8, EOS], [7, 7, 7, EOS])


def test_dataset_and_batches(tmp_path: Path) -> None:
    write_shards(tmp_path)
    task = make_task(tmp_path)
    dataset = task.dataset("train")
    assert (len(dataset), dataset.num_left_out) == (2, 1)
    batch = task.collate(dataset, [1, 0])
    assert batch.inputs.source.tolist() == [[8, EOS, PAD], [4, 5, EOS]]
    assert batch.labels.tolist() == [[7, 7, 7, EOS], [6, EOS, PAD, PAD]]
    assert batch.inputs.target[0].tolist() == [EOS, 7, 7, 7]
    assert task.collate(dataset, []).num_tokens == 0


def test_shards_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "of letters")
    with pytest.raises(UserError, match=r"of letters.*of words"):
        make_task(tmp_path).dataset("train")


def test_evaluation_scores_translations_of_raw_text(tmp_path: Path, raw: PairPath) -> None:
    model = TableModel(VOCAB).train()
    figures = make_task(tmp_path, raw).evaluate(model, "valid", SEARCH, LIMITS, CPU, ALONE, METRICS)  # type: ignore[arg-type]
    lines = ["w4 w5", "w6", "w7 w8 w4"]
    expected = translate(model, words(VOCAB), lines, SEARCH, LIMITS, CPU)
    assert expected is not None
    bleu, chrf = Scorer("en")(expected.lines, read_raw("valid", [raw]).target)
    assert (figures["bleu"], figures["chrf"]) == (bleu.value, chrf.value)
    assert figures["bleu_signature"] == bleu.signature
    assert expected.lines[1] in str(figures["samples"])
    assert model.training, "the model's mode is put back"


def test_translations_that_are_the_reference_score_100(tmp_path: Path, raw: PairPath) -> None:
    lines = [f"w{n} w{m}" for n in range(4, VOCAB) for m in range(4, VOCAB)]
    model = TableModel(VOCAB)
    found = translate(model, words(VOCAB), lines, SEARCH, LIMITS, CPU)
    assert found is not None
    perfect = PairPath(write(tmp_path / "s", lines), write(tmp_path / "t", found.lines))
    figures = make_task(tmp_path, perfect).evaluate(
        model, "valid", SEARCH, LIMITS, CPU, ALONE, METRICS
    )  # type: ignore[arg-type]
    assert figures["bleu"] == pytest.approx(100.0)


def test_evaluation_of_the_first_sentences_only(tmp_path: Path, raw: PairPath) -> None:
    task, model = make_task(tmp_path, raw), TableModel(VOCAB)
    figures = task.evaluate(model, "valid", SEARCH, LIMITS, CPU, ALONE, METRICS, max_sentences=2)  # type: ignore[arg-type]
    assert str(figures["samples"]).count("source") == 2


def test_a_split_without_raw_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.raw\.train"):
        make_task(tmp_path).evaluate(
            TableModel(VOCAB), "train", SEARCH, LIMITS, CPU, ALONE, METRICS
        )  # type: ignore[arg-type]


def test_several_files_are_one_text(raw: PairPath) -> None:
    text = read_raw("test", [raw, PairPath(raw.target, raw.source)])
    assert text.source == text.target[3:] + text.target[:3]
    assert len(text.source) == 6


@pytest.mark.parametrize(
    ("total", "sizes", "counts"),
    [
        (10, [100, 100], [5, 5]),
        (10, [300, 100], [7, 3]),
        (10, [1000, 1], [9, 1]),
        (10, [1000, 0, 1000], [5, 0, 5]),
        (1, [10, 20], [0, 1]),
        (99, [3, 4], [3, 4]),
        (7, [5], [5]),
        (3, [5, 5, 5, 5], [1, 1, 1, 0]),
    ],
)
def test_sentences_are_spread_over_files(total: int, sizes: list[int], counts: list[int]) -> None:
    assert spread(total, sizes) == counts


def test_some_sentences_of_every_file(tmp_path: Path) -> None:
    pairs = []
    for folder, size in (("a", 6), ("b", 2)):
        (tmp_path / folder).mkdir()
        lines = [f"{folder}{n}" for n in range(size)]
        path = write(tmp_path / folder / "x.en", lines)
        pairs.append(PairPath(path, path))
    texts = read_files("valid", pairs, 4)
    assert [text.source for text in texts.values()] == [["a0", "a1", "a2"], ["b0"]]
    assert [Path(name).parent.name for name in texts] == ["a", "b"], "equal names get folders"


def test_each_of_several_files_has_its_own_scores(tmp_path: Path, raw: PairPath) -> None:
    other = PairPath(raw.target, raw.source)
    joined = PairPath(
        *(
            write(tmp_path / f"joined.{side}", [*read_lines(first), *read_lines(second)])
            for side, first, second in zip(("source", "target"), raw, other, strict=True)
        )
    )
    figures, whole, *alone = (
        make_task(tmp_path, *files).evaluate(
            TableModel(VOCAB),  # type: ignore[arg-type]
            "valid",
            SEARCH,
            LIMITS,
            CPU,
            ALONE,
            METRICS,
        )
        for files in ((raw, other), (joined,), (raw,), (other,))
    )
    for pair, expected in zip((raw, other), alone, strict=True):
        name = Path(pair.source).name
        assert figures[f"chrf/{name}"] == expected["chrf"]
        assert not [key for key in expected if "/" in key], "one file is the whole text"
    assert figures["chrf"] == whole["chrf"]


def test_pairs_know_their_file_if_the_shards_are_those_of_the_text(tmp_path: Path) -> None:
    pairs = [
        PairPath(
            write(tmp_path / f"{name}.en", ["w"] * lines), write(tmp_path / name, ["w"] * lines)
        )
        for name, lines in (("a", 2), ("b", 0), ("c", 1))
    ]
    write_shards(tmp_path, split="valid")  # 3 pairs, of which the second is too long
    files = make_task(tmp_path, *pairs).dataset("valid")
    assert files.files == {"a.en": 2, "b.en": 0, "c.en": 1}
    assert [part.tolist() for part in files.by_file()] == [[0], [], [1]]
    for others in (pairs[:2], [*pairs[:2], PairPath(Path("no"), Path("no"))]):
        unknown = make_task(tmp_path, *others).dataset("valid")
        assert unknown.files == {} and [part.tolist() for part in unknown.by_file()] == [[0, 1]]


def test_samples_are_spread_over_the_text() -> None:
    lines = [str(n) for n in range(10)]
    shown = format_samples(lines, lines, None, 2).split("\n\n")
    assert [sample.split()[1] for sample in shown] == ["0", "5"]
    assert format_samples(["a"], ["b"], ["c"], 5).split() == (
        ["source", "a", "translation", "b", "reference", "c"]
    )
    assert format_samples([], [], [], 5) == ""


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    text = write(tmp_path / "text", ["the cat sat on the mat", "a dog ate the bone"] * 9)
    train_vocab([text], tmp_path / "vocab.model", 20, num_threads=1)
    pair = {"source": str(text), "target": str(text)}
    languages = {"source_lang": "de", "target_lang": "en"}
    return DataConfig(**languages, dir=str(tmp_path), raw={"valid": pair})


def test_task_from_a_config(config: DataConfig) -> None:
    task = build_task(TranslationConfig(), config)
    assert isinstance(task, TranslationTask)
    model = TableModel(task.tokenizers.size)
    figures = task.evaluate(model, "valid", SEARCH, LIMITS, CPU, ALONE, METRICS)  # type: ignore[arg-type]
    assert 0 <= float(figures["bleu"]) < 100


def test_external_task_gets_its_options(config: DataConfig) -> None:
    external = ExternalConfig(name=f"{__name__}:external_task", options={"answer": 42})
    with trusting([external.name]):
        assert build_task(external, config) == (config, 42)


def external_task(data: DataConfig, answer: int) -> tuple[DataConfig, int]:
    return data, answer


def test_search_from_a_config_has_every_field_of_it(config: DataConfig) -> None:
    vocab = SentencePieceTokenizer.load(f"{config.dir}/vocab.model")
    given = {
        "beam": 3,
        "length_penalty": 0.5,
        "length_penalty_form": "gnmt",
        "unk_penalty": 1.5,
        "temperature": 0.7,
        "max_len_a": 2.0,
        "max_len_b": 7,
        "min_len": 2,
        "no_repeat_ngram": 4,
        "sampling": True,
        "sampling_top_k": 6,
        "seed": 8,
        "max_tokens": 99,
        "max_sentences": 5,
        "ensemble": "log_probabilities",
    }
    alone = {"sampling_top_p": 1.0, "sampling_epsilon": 0.0, "diverse_siblings": 0.0}
    alone |= {
        "diverse_groups": 1,
        "diverse_strength": 0.5,
        "expert": 1,
        "lm": None,
        "lm_weight": 0.3,
        "shortlist": None,
    }
    generation = GenerationConfig(**given)
    assert given | alone == generation.model_dump(), "a new field: give it a value above"
    found = vars(build_search(generation, vocab.symbols, 50)) | vars(build_limits(generation, 50))
    assert found.pop("sampling") == draws(top_k=6, seed=8)
    apart = {"sampling", "sampling_top_k", "seed", "ensemble"}  # the last is of the models
    assert {name: found[name] for name in given if name not in apart} == {
        name: value for name, value in given.items() if name not in apart
    }
    assert found["max_positions"] == found["max_source_length"] == 50


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Plain()),
        ({"diverse_siblings": 0.3}, DiverseSiblings(0.3)),
        ({"beam": 4, "diverse_groups": 2}, DiverseGroups(2, 0.5, end=2)),
        ({"beam": 4, "diverse_groups": 4, "diverse_strength": 2.0}, DiverseGroups(4, 2.0, end=2)),
    ],
)
def test_diversity_from_a_config(
    config: DataConfig, given: dict[str, float], expected: SelectionMaker
) -> None:
    vocab = SentencePieceTokenizer.load(f"{config.dir}/vocab.model")
    generation = GenerationConfig(**given)
    assert build_search(generation, vocab.symbols, 50).selection == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"sampling": True, "sampling_top_p": 0.7}, draws(top_p=0.7)),
        ({"sampling": True, "sampling_epsilon": 0.1}, draws(epsilon=0.1)),
    ],
)
def test_sampling_from_a_config(
    config: DataConfig, given: dict[str, float], expected: Sampling | None
) -> None:
    vocab = SentencePieceTokenizer.load(f"{config.dir}/vocab.model")
    generation = GenerationConfig(**given)
    assert build_search(generation, vocab.symbols, 50).sampling == expected
