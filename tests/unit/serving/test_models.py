"""Language tags, ensembles, and explanations while other threads translate."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq.commands import generate
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs import fusion
from ds_seq.runs.card import LoadedRun
from ds_seq.serving.batcher import Batcher
from ds_seq.serving.explaining import explanation_question
from ds_seq.serving.models import Question, ServedModel
from ds_seq.serving.requests import ExplanationRequest, Line, TranslationRequest
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import SIZES, experiment, write_run
from tests.unit.serving.conftest import served_model

LINES = ["a dog", "I see dogs", "dogs in a wood", ""]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that have learned nothing, of a vocabulary with tags; one has experts."""
    folder = tmp_path_factory.mktemp("tagged")
    write_toy(folder, 200, 10)
    sides = [folder / "train.en", folder / "train.de"]
    vocab = train_vocab(sides, folder / "vocab", 130, user_symbols=["<2de>", "<2fr>"])
    made = []
    for seed, moe in enumerate(({"num_experts": 4, "top_k": 2}, None)):
        config = experiment({"max_positions": 40, "moe": moe})
        model = build_model(config.model, len(vocab), 1, 0, seed=seed)
        with torch.no_grad():  # let it say different things in different places
            for parameter in model.parameters():
                parameter.mul_(1.5)
        made.append(write_run(folder / f"run{seed}", config, vocab, {1: model}))
    (folder / "in").write_text("".join(f"{line}\n" for line in LINES))
    return made


@pytest.fixture(scope="module")
def language_model(runs: list[Path]) -> Path:
    """A language model with their vocabulary that has learned nothing."""
    folder = runs[0].parent
    own = {name: size for name, size in SIZES.items() if name != "encoder_layers"}
    config = ExperimentConfig.model_validate(
        {
            "name": "lm",
            "data": {"language": "de", "dir": "data"},
            "task": {"name": "language_modeling", "blocks": "line", "block_tokens": 40},
            "model": {"name": "decoder_only", "max_positions": 40, **own},
        }
    )
    vocab = SentencePieceTokenizer.load(folder / "vocab")
    model = build_model(config.model, len(vocab), 1, 0, seed=7)
    return write_run(folder / "lm", config, vocab, {1: model})


def answers(model: ServedModel, batcher: Batcher, **request: Any) -> list[Line]:
    asked = model.ask(TranslationRequest(text=LINES, **request))
    return [
        batcher.submit(*each).result(60) if isinstance(each, Question) else each for each in asked
    ]


def written(runs: list[Path], *options: str) -> list[list[str]]:
    """Texts and scores of `ds-seq generate`."""
    folder = runs[0].parent
    files = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--format", "jsonl"]
    assert generate.main([*map(str, runs), *files, *options]) == 0
    rows = map(json.loads, (folder / "out").read_text().splitlines())
    return [[f"{h['score']:.4f} {h['text']}" for h in row["hypotheses"]] for row in rows]


def texts(lines: list[Line]) -> list[list[str]]:
    return [[f"{h.score:.4f} {h.text}" for h in line.hypotheses] for line in lines]


@pytest.mark.slow
def test_tags_of_both_sides_and_an_ensemble(runs: list[Path]) -> None:
    model = served_model("both", *runs)
    batcher = Batcher(1, 0.0, lambda *facts: None)
    assert model.description().target_langs == ["de", "fr"]
    by_tag = answers(model, batcher, target_lang="fr", n_best=2)
    assert texts(by_tag) == written(runs, "--target-lang", "fr", "--n-best", "2")
    assert by_tag[0].source == "<2fr> a dog" and not by_tag[0].untagged
    plain = answers(model, batcher)
    assert [line.untagged for line in plain] == [True, True, True, False]
    by_target = answers(model, batcher, target_tag="<2de>", prefix="ein")
    (runs[0].parent / "p").write_text("ein\n" * len(LINES))
    options = ["--target-tag", "<2de>", "--prefix", str(runs[0].parent / "p")]
    assert texts(by_target) == written(runs, *options)
    assert all(line.hypotheses[0].text.startswith("ein") for line in by_target[:3])
    with pytest.raises(UserError, match="target_lang xx: small knows no tag"):
        answers(model, batcher, target_lang="xx")
    batcher.close()


def test_models_of_an_ensemble_have_one_vocabulary(runs: list[Path], tmp_path: Path) -> None:
    write_toy(tmp_path, 200, 10)
    vocab = train_vocab([tmp_path / "train.en"], tmp_path / "vocab", 90)
    config = experiment({})
    other = write_run(
        tmp_path / "run", config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=1)}
    )
    with pytest.raises(UserError, match="x: .* has another vocabulary than"):
        served_model("x", runs[0], other)


@pytest.mark.slow
def test_explanations_see_their_own_routing(runs: list[Path]) -> None:
    """Hooks on the routers of a model record for one thread, whatever the others do with it."""
    model = served_model("moe", runs[0])
    alone = Batcher(1, 0.0, lambda *facts: None)
    requests = [ExplanationRequest(text=f"<2de> {line}") for line in LINES[:3]]
    expected = [alone.submit(*explanation_question(model, each)).result(60) for each in requests]
    alone.close()
    batcher = Batcher(3, 0.0, lambda *facts: None)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(answers, model, batcher, target_lang="de") for _ in range(4)]
        found = [batcher.submit(*explanation_question(model, each)) for each in requests * 3]
        for future, wanted in zip(found, expected * 3, strict=True):
            explanation = future.result(60)
            assert explanation.experts == wanted.experts and explanation.text == wanted.text
        assert len({str(texts(each.result())) for each in busy}) == 1
    batcher.close()
    assert len(expected[0].experts) > 1


def test_a_language_model_continues_prompts(runs: list[Path], language_model: Path) -> None:
    model = served_model("lm", language_model)
    batcher = Batcher(1, 0.0, lambda *facts: None)
    found = answers(model, batcher, n_best=2)
    batcher.close()
    assert texts(found) == written([language_model], "--n-best", "2")
    assert found[0].hypotheses[0].text.startswith(LINES[0])
    with pytest.raises(UserError, match="model lm: is a language model"):
        explanation_question(model, ExplanationRequest(text="a"))
    with pytest.raises(UserError, match="align: lm has no attention to a source"):
        answers(model, batcher, align=True)


@pytest.mark.slow
def test_a_language_model_in_the_search_is_loaded_once(
    runs: list[Path], language_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = fusion.load_packed

    def counted(*arguments: Any) -> LoadedRun:
        loads.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(fusion, "load_packed", counted)
    settings = {"lm": str(language_model), "lm_weight": 2.0}
    model = served_model("moe", runs[0], **settings)
    batcher = Batcher(1, 0.0, lambda *facts: None)
    found = answers(model, batcher, search={"length_penalty": 0.5, "beam": 3})
    alone = answers(served_model("alone", runs[0]), batcher, search={"length_penalty": 0.5})
    batcher.close()
    assert len(loads) == 1
    options = ["--lm", str(language_model), "--lm-weight", "2", "--beam", "3"]
    assert texts(found) == written(runs[:1], *options, "--length-penalty", "0.5") != texts(alone)
