"""The section `data.vocab`: one vocabulary or two, and what goes with which kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump, load_experiment, read_experiment
from ds_seq.config.needs import unmet
from ds_seq.config.outside import outside_names
from ds_seq.config.vocab import VocabConfig
from ds_seq.data.expected import vocab_options
from ds_seq.errors import UserError

SPLIT = {"share_embeddings": "decoder"}
FILES = {"dictionary": "d.txt", "codes": "c"}


def experiment(vocab: dict[str, Any], **sections: Any) -> ExperimentConfig:
    data = {"source_lang": "en", "target_lang": "de", "dir": "d", "vocab": vocab}
    checks = {"metrics": [], "best": "loss"}
    return read_experiment(
        {"name": "x", "data": data, "model": SPLIT, "validation": checks, **sections}
    )


def test_a_side_has_what_it_says_and_else_what_both_have() -> None:
    vocab = VocabConfig.model_validate(
        {"size": 900, "model_type": "bpe", "source": {"size": 500, "user_symbols": ["<2de>"]}}
    )
    assert not vocab.joint
    assert (vocab.source_side.size, vocab.target_side.size) == (500, 900)
    assert vocab.source_side.model_type == vocab.target_side.model_type == "bpe"
    assert (vocab.source_side.user_symbols, vocab.target_side.user_symbols) == (["<2de>"], [])
    assert list(vocab.parts) == ["source", "target"]
    assert list(VocabConfig().parts) == [""] and VocabConfig().source_side == VocabConfig()
    assert not VocabConfig(joint=False).joint


def test_the_dump_of_two_vocabularies_is_read_again(tmp_path: Path) -> None:
    config = experiment({"source": {"size": 500}, "target": {"byte_fallback": True}})
    file = tmp_path / "x.yaml"
    file.write_text(dump(config))
    assert load_experiment(file) == config
    assert load_experiment(file, ["data.vocab.source.size=60"]).data.vocab.source_side.size == 60


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"source": {"size": 7}}, "data.vocab.source.size: should be at least 8"),
        ({"source": {"sze": 70}}, r"data.vocab.source.sze: unknown key \(did you mean 'size'"),
        ({"target": {"user_symbols": ["</s>"]}}, "data.vocab.target.user_symbols: </s> is always"),
        ({"target": {"normalization": "x"}}, "data.vocab.target.normalization: no rule 'x'"),
        ({"joint": True, "source": {"size": 70}}, "data.vocab.joint: true, but source describes"),
        ({"source": {"name": "fairseq_dict"}}, "data.vocab.source.fairseq: missing: name the dict"),
        ({"fairseq": FILES}, "data.vocab.fairseq: belongs to name: fairseq_dict"),
        ({"name": "fairseq_dict", "fairseq": FILES, "model_type": "bpe"}, "data.vocab.model_type"),
        (
            {"name": "fairseq_dict", "fairseq": {**FILES, "sentencepiece": "m"}},
            "data.vocab.fairseq.sentencepiece: the symbols are pieces of one kind",
        ),
        ({"byte_fallback": True, "size": 260}, "data.vocab.size: 260 has no room for text: 4 spec"),
    ],
)
def test_mistakes_are_named_by_key(vocab: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment(vocab)


def test_one_table_cannot_serve_two_vocabularies() -> None:
    with pytest.raises(UserError, match="model.share_embeddings: all: source and target have voc"):
        experiment({"joint": False}, model={})
    assert experiment({"joint": False}, model={"share_embeddings": "none"})


def test_symbols_of_the_source_are_the_tags() -> None:
    moe = {**SPLIT, "moe": {"num_experts": 2, "router": "language"}}
    assert experiment({"source": {"user_symbols": ["<2de>"]}}, model=moe)
    with pytest.raises(UserError, match="model.moe.router: language needs tags"):
        experiment({"target": {"user_symbols": ["<2de>"]}}, model=moe)


def test_code_from_outside_is_found_in_each_side() -> None:
    config = experiment({"target": {"name": "my.text:Words"}})
    names = [(".".join(map(str, path)), name) for path, name in outside_names(config)]
    assert names == [("data.vocab.target.name", "my.text:Words")]


def test_parameters_are_counted_by_side() -> None:
    sizes = {"d_model": 8, "ffn_dim": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    counts = {}
    for shared in ("decoder", "none"):
        model = experiment({"joint": False}, model={**sizes, "share_embeddings": shared}).model
        one, other = model.num_params(100, 30), model.num_params(100)
        assert one is not None and other is not None
        assert other.total - one.total == 70 * 8
        counts[shared] = one.total
    assert counts["none"] - counts["decoder"] == 100 * 8


def test_options_of_two_vocabularies_are_told_apart() -> None:
    options = vocab_options(experiment({"source": {"size": 500}}).data)
    assert (options["joint"], options["source.size"], options["target.size"]) == (False, 500, 32000)
    joint = vocab_options(experiment({}).data)
    assert joint["joint"] and joint["size"] == 32000 and "fairseq" not in joint


def test_files_of_fairseq_are_found_and_missed(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a 1\n")
    file = tmp_path / "x.yaml"
    config = experiment(
        {"name": "fairseq_dict", "source": {"fairseq": FILES}, "target": {"fairseq": FILES}}
    )
    file.write_text(dump(config))
    data = load_experiment(file).data
    found = data.vocab.source_side.fairseq
    assert found is not None and found.dictionary == str(tmp_path / "d.txt")
    errors = "\n".join(unmet(load_experiment(file)).errors)
    assert "data.vocab.source.fairseq.codes" in errors and "fairseq.dictionary" not in errors


def test_folders_of_fairseq_are_found_next_to_the_experiment(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    file = tmp_path / "x.yaml"
    file.write_text(
        "name: x\nvalidation: {metrics: [], best: loss}\ndata: {source_lang: en, target_lang: en, "
        "dir: d, source: {name: fairseq, folders: 'one:two:none', languages: [en_XX, de_DE]}}\n"
    )
    config = load_experiment(file)
    source = config.data.source
    assert source.model_dump()["folders"] == [str(tmp_path / "one"), str(tmp_path / "two"), "none"]
    assert config.data.fairseq_languages == ("en_XX", "de_DE")
    assert [line for line in unmet(config).errors if "folders" in line] == [
        "data.source.folders: none: no such folder"
    ]
