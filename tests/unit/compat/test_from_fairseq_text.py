"""`ds-seq from-fairseq` of language models and of gated convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_seq import cli
from ds_seq.compat.fairseq.architectures import ARCHITECTURES
from ds_seq.compat.fairseq.command import BY_DEST, Given, read_command
from ds_seq.compat.fairseq.text_model import LANGUAGE_MODELS
from ds_seq.compat.fairseq.translate import translate
from ds_seq.config.load import read_experiment
from ds_seq.config.model.convolutional import CONVOLUTIONAL_PRESETS, ConvolutionalConfig
from ds_seq.data.fairseq import FairseqSource
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from tests.unit.compat.one_side import LINES, WORDS

RECORDED = json.loads(
    (Path(__file__).parents[2] / "data" / "fairseq_flags.json").read_text(encoding="utf-8")
)["language_models"]
# what follows from other arguments, or is written in another way
FOLLOWS = ("conv_dim", "input_dim", "output_dim", "dropout_in", "dropout_out", "hidden_size")
OTHER_FORMS = ("weight_dropout", "weight_softmax", "decoder_glu", "decoder_layers")
TRAINING = ["--optimizer", "adam", "--lr", "0.001", "--max-tokens", "2048", "--max-update", "2"]


def words_of(arch: str, *flags: str, folder: object = "nowhere") -> list[str]:
    task = ["--task", "language_modeling", "--arch", arch]
    return [str(folder), *task, *TRAINING, *flags]


def experiment_of(arch: str, *flags: str, folder: object = "nowhere") -> dict[str, Any]:
    found = translate(read_command(words_of(arch, *flags, folder=folder))).experiment
    found["data"]["vocab"].setdefault("size", 300_000)
    return found


def test_all_language_models_are_known() -> None:
    assert RECORDED.keys() == {n for n in ARCHITECTURES if n.startswith(LANGUAGE_MODELS)}


@pytest.mark.parametrize("arch", sorted(RECORDED))
def test_architectures_imply_what_they_imply_in_fairseq(arch: str) -> None:
    given = Given.of({"arch": arch})
    for dest, value in RECORDED[arch].items():
        is_compared = dest in BY_DEST and not dest.endswith(FOLLOWS) and dest not in OTHER_FORMS
        if is_compared and value is not None:
            assert given[dest] == value, dest
    needs = ["--criterion", "adaptive_loss"] * ("cutoff" in str(given.arguments))
    found = read_experiment(experiment_of(arch, *needs))
    ours = arch.removeprefix("transformer_").replace("baevski_", "")
    name, skipped = found.model.name, ("lm", "gpt3", "megatron", "big_wide", "bigger")
    if arch == "lstm_lm" or ours.endswith(skipped) or "gpt3" in ours or "megatron" in ours:
        return
    section = {"name": name, "preset": ours}
    if name == "decoder_only":  # a preset leaves the length to the schema
        section["max_positions"] = found.model.max_positions
    preset = read_experiment({**found.model_dump(exclude_unset=True), "model": section}).model
    assert preset.num_params(300_000) == found.model.num_params(300_000)


@pytest.mark.parametrize("preset", sorted(CONVOLUTIONAL_PRESETS))
def test_gated_convolutions_are_those_of_the_flags(preset: str) -> None:
    words = ["nowhere", "-s", "en", "-t", "de", "--arch", preset, *TRAINING]
    section = translate(read_command(words)).experiment["model"]
    read = ConvolutionalConfig.model_validate(section)
    ours = ConvolutionalConfig(
        name="convolutional", preset=preset, max_positions=read.max_positions
    )
    assert read.num_params(1000) == ours.num_params(1000)
    more = ["--decoder-layers", "[(64, 3)] * 2 + [(32, 1, 2)]", "--decoder-embed-dim", "512"]
    other = translate(read_command([*words, *more, "--encoder-embed-dim", "512"])).experiment
    assert other["model"]["decoder_convolutions"] == [[64, 3], [64, 3], [32, 1, 2]]


def test_text_of_one_side_is_trained_on_where_it_is(one_side: Path, tmp_path: Path) -> None:
    small = ["--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8", "--decoder-layers", "1"]
    small += ["--decoder-attention-heads", "2", "--tokens-per-sample", "7"]
    words = words_of("transformer_lm_gpt", *small, folder=one_side)
    assert cli.main(["from-fairseq", "--out", str(tmp_path / "new"), "--", *words]) == 0
    path = tmp_path / "new" / "experiment.yaml"
    text = path.read_text().replace("dir: data/lm", f"dir: {tmp_path}/shards")
    path.write_text(text.replace("run_dir", "# run_dir"))
    assert cli.main(["prepare", str(path)]) == 0
    config = read_experiment(experiment_of("transformer_lm_gpt", *small, folder=one_side))
    settings = config.data.model_copy(update={"dir": str(tmp_path / "shards")})
    dataset = build_task(config.task, settings).dataset("train")
    found = np.concatenate([build for build in _labels(dataset)])
    assert found.tolist() == [token for line in LINES for token in line]


def _labels(dataset: Any) -> list[Any]:
    return [dataset.gather(np.array([n])).block.tokens for n in range(len(dataset))]


def test_adaptive_parts_and_lines(one_side: Path) -> None:
    bands = ["--adaptive-softmax-cutoff", "10,20", "--criterion", "adaptive_loss"]
    experiment = experiment_of("lstm_lm", *bands, "--sample-break-mode", "eos", folder=one_side)
    assert experiment["task"]["blocks"] == "line" and not experiment["task"]["random_start"]
    assert experiment["model"]["adaptive"]["cutoffs"] == [10, 20]
    characters = ["--character-embeddings", "--char-embedder-highway-layers", "1"]
    read = experiment_of("transformer_lm_gpt", *characters, folder=one_side)["model"]
    assert read["character_embeddings"]["highway_layers"] == 1
    assert len(read["character_embeddings"]["filters"]) == 7
    plain = experiment_of("lstm_lm", "--share-decoder-input-output-embed", folder=one_side)["model"]
    assert "adaptive" not in plain and plain["share_embeddings"] == "all"
    config = read_experiment(experiment)
    assert config.data.language == "und" and config.data.vocab.size == WORDS + 4


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("transformer_lm_gpt", ["--criterion", "adaptive_loss"], "adaptive_loss goes with --adap"),
        ("transformer_lm_wiki103", [], "--criterion cross_entropy: adaptive_loss goes with"),
        ("transformer_lm", ["--decoder-embed-dim", "8"], "--decoder-input-dim 512: must be"),
        ("transformer_lm", ["--sample-break-mode", "complete"], "complete: not supported; there"),
        (
            "transformer_lm",
            ["--character-embeddings", "--character-filters", "[1, 2]"],
            "--character-filters .*: should be a list of pairs",
        ),
        ("transformer_lm", ["--add-bos-token"], "--add-bos-token: texts begin with the end"),
        ("transformer_lm", ["--future-target"], "--future-target: each token is predicted from"),
        ("lstm_lm", ["--residuals"], "--residuals: adds the layer's own state"),
        ("fconv_lm", ["--decoder-attention", "True"], "--decoder-attention True: there is no"),
        ("fconv_lm", ["--decoder-layers", "[8, 3]"], "--decoder-layers .*should be a list of pai"),
        ("transformer", [], "--arch transformer: no language model; there are"),
        ("fconv", [], "--arch fconv: no language model"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(
    arch: str, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        experiment_of(arch, *flags)
    assert len(str(caught.value).splitlines()) <= 2  # input and output may differ


def test_files_of_one_side_that_are_missing_or_pairs_are_named(
    one_side: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = experiment_of("transformer_lm_gpt", folder=one_side)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.en-de.en.idx").write_bytes(b"")
    for folder, words in ((tmp_path, "has no train.idx"), (tmp_path / "pairs", "it has pairs")):
        given["data"]["source"]["folders"] = [str(folder)]
        given["data"]["vocab"]["fairseq"]["dictionary"] = str(one_side / "dict.txt")
        (tmp_path / "x.yaml").write_text(json.dumps(given))
        assert cli.main(["prepare", str(tmp_path / "x.yaml")]) == 2
        assert words in capsys.readouterr().err
    given["data"]["source"]["languages"] = ["en", "de"]
    with pytest.raises(UserError, match="data.source.languages: text of one side has none"):
        read_experiment(given)


def test_blocks_come_from_all_parts(one_side: Path, tmp_path: Path) -> None:
    given = read_experiment(experiment_of("transformer_lm_gpt", folder=one_side))
    (tmp_path / "x.yaml").write_text(json.dumps(given.model_dump(exclude_unset=True)))
    settings = given.data.model_copy(update={"dir": str(tmp_path)})
    from ds_seq.text.build import train_tokenizers

    tokenizers = train_tokenizers(settings, [])
    source = FairseqSource([one_side, one_side], "train", (), tokenizers)
    assert source.lengths.shape == (2 * len(LINES), 1)
    (block,) = source.gather(np.array([3, len(LINES), 0]))
    assert block.tokens.tolist() == [*LINES[3], *LINES[0], *LINES[0]]
