"""`ds-seq from-fairseq`: every flag of fairseq has a row, and commands become what they mean."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ds_seq import cli
from ds_seq.compat.fairseq.architectures import ARCHITECTURES, ROBERTAS
from ds_seq.compat.fairseq.command import BY_DEST, BY_NAME, FLAGS, Given, read_command
from ds_seq.compat.fairseq.page import flags_page
from ds_seq.compat.fairseq.text_model import LANGUAGE_MODELS
from ds_seq.compat.fairseq.translate import Translation, translate
from ds_seq.config.load import load_experiment, read_experiment
from ds_seq.config.model import RecurrentConfig, TransformerConfig
from ds_seq.config.model.convolutional import CONVOLUTIONAL_PRESETS
from ds_seq.config.model.recurrent import RECURRENT_PRESETS
from ds_seq.config.schema import sections
from ds_seq.errors import UserError
from ds_seq.names import STACKS
from tests.data.fairseq import write_recorded
from tests.unit.compat.commands import COMMANDS, command

RECORDED = json.loads(
    (Path(__file__).parents[2] / "data" / "fairseq_flags.json").read_text(encoding="utf-8")
)
OPTIONS = [section.path_of(name) for section in sections() for name in section.config.model_fields]
# of one value in the command, several defaults of parts that share the flag, or a form of its own
OTHER_DEFAULTS = {
    "--combine-valid-subsets", "--combine-val", "--update-freq", "--lr", "--source-lang",
    "--target-lang", "--gpt2-encoder-json", "--gpt2-vocab-bpe", "--adam-betas", "--momentum",
    "--warmup-updates", "--lr-period-updates", "-s", "-t", "--groups", "--loss-weights",
    "--eval-bleu-args", "--tokens-per-sample",
}  # fmt: skip
OTHER_KINDS = ("--permute-sentences",)  # a share, of which fairseq 0.12 reads whole ones only


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairseq")
    write_recorded(folder)
    for language in ("en", "de"):  # with language tags
        content = (folder / "spm" / f"dict.{language}.txt").read_text(encoding="utf-8")
        path = folder / "tagged" / f"dict.{language}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{content}__src__hi 9\n__src__ta 9\n", encoding="utf-8")
    return folder


def translated(words: list[str]) -> Translation:
    return translate(read_command(words))


def model_of(*flags: str, data: Path, arch: str = "transformer_tiny") -> dict[str, Any]:
    words = [str(data / "spm"), "--arch", arch, "--optimizer", "adam", "--max-tokens", "9"]
    model = translated([*words, *flags]).experiment["model"]
    assert isinstance(model, dict)
    return model


def test_every_flag_of_fairseq_has_a_row_that_reads_it() -> None:
    assert len(RECORDED["flags"]) > 300 and RECORDED["flags"].keys() <= BY_NAME.keys()
    for name, uses in RECORDED["flags"].items():
        flag = BY_NAME[name]
        for kind, default in uses:
            is_other = kind == "other" and flag.kind not in ("switch", "off")
            assert flag.kind == kind or is_other or name in OTHER_KINDS
            is_compared = flag.kind != "text" and name not in OTHER_DEFAULTS
            if default is not None and is_compared:
                assert flag.default == default, name


def test_rows_name_options_that_exist_and_give_reasons() -> None:
    assert len(BY_NAME) == sum(len(flag.names) for flag in FLAGS)
    known = {"model", "criterion", "task", "generation", "number of processes of the launcher"}
    known |= {part for path in OPTIONS for part in (path, path.rpartition(".")[0])}
    for flag in FLAGS:
        assert flag.note or flag.fate == "translated"
        unknown = [o for o in flag.options if o not in known and "DeepSpeed JSON" not in o]
        assert not unknown and bool(flag.options) == (flag.fate == "translated")


@pytest.mark.parametrize("name", sorted(RECORDED["architectures"]))
def test_architectures_imply_what_they_imply_in_fairseq(name: str) -> None:
    given = Given.of({"arch": name})
    for dest, value in RECORDED["architectures"][name].items():
        if dest in BY_DEST and given[dest] is not None:
            assert given[dest] == value, dest
    for what in ("embed_dim", "ffn_embed_dim"):
        assert (given[f"decoder_{what}"] or given[f"encoder_{what}"]) == RECORDED["architectures"][
            name
        ][f"decoder_{what}"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_of_the_documentation_are_translated(name: str, data: Path) -> None:
    is_tagged = name == "global_language_wise"
    more = ["-s", "en", "-t", "de"] if is_tagged else []
    result = translated(command(name, data / ("tagged" if is_tagged else "spm"), *more))
    config = read_experiment(result.experiment)
    assert (config.data.vocab.user_symbols == ["__src__hi", "__src__ta"]) == is_tagged
    assert config.data.source_lang == "en" and config.data.vocab.joint
    assert config.optimizer.lr in (5e-4, 1e-3)
    if name in ("word_level", "batch_level"):
        assert result.needs == [("teacher.pt", "runs/en-de-teacher")]


def test_the_gate_loss_is_converted_to_a_weight_per_token(data: Path) -> None:
    result = translated(command("experts", data / "spm"))
    criterion = result.experiment["criterion"]
    assert criterion["loss_weights"]["load_balance"] == pytest.approx(10 / 8192, rel=1e-3)
    assert criterion["loss_weights"] | {"load_balance": 0} == {
        "base": 1, "router_z": 0.0, "load_balance": 0,
    }  # fmt: skip
    assert any("10 becomes load_balance 0.001221" in note for note in result.notes)
    moe = result.experiment["model"]["moe"]
    assert moe["placement"] == "both" and moe["every"] == 2 and moe["num_experts"] == 8
    assert (moe["noise"], moe["capacity_factor"], moe["min_capacity"]) == ("jitter", 1.0, 0)
    train = result.experiment["train"]
    assert (train["accumulate"], train["precision"], train["keep_last"]) == (16, "fp16", 1)
    assert result.deepspeed["fp16"]["initial_scale_power"] == 7
    assert result.deepspeed["fp16"]["loss_scale_window"] == 2**14 // (8 * 16)


def test_what_fairseq_implies_is_written_out(data: Path) -> None:
    result = translated(command("iwslt", data / "spm"))
    experiment = result.experiment
    assert experiment["train"]["sentence_multiple"] == 8 and experiment["train"]["clip_norm"] == 0
    assert experiment["optimizer"] == {
        "name": "adamw", "lr": 5e-4, "weight_decay": 1e-4, "betas": [0.9, 0.98], "eps": 1e-8,
    }  # fmt: skip
    assert experiment["scheduler"]["warmup_updates"] == 4000
    plain = translated([*command("stacking", data / "spm"), "--lr", "0.1"]).experiment
    assert plain["optimizer"]["betas"] == [0.9, 0.999]
    assert plain["criterion"] == {"name": "cross_entropy", "label_smoothing": 0.0}
    assert plain["generation"] == {"beam": 5, "max_len_a": 0.0, "max_len_b": 200}
    assert (plain["model"]["encoder_layers"], plain["model"]["encoder_repeats"]) == (1, 6)


def test_axes_of_the_model(data: Path) -> None:
    assert model_of(data=data)["positions"] == {"name": "sinusoidal", "offset": 2}
    learned = ["--encoder-learned-pos", "--decoder-learned-pos"]
    assert model_of(*learned, data=data)["positions"] == "learned"
    assert model_of("--no-token-positional-embeddings", data=data)["positions"] == "none"
    rope = ["--rope-args", '{"theta": 500}', "--no-token-positional-embeddings"]
    assert model_of(*rope, data=data)["positions"]["theta"] == 500.0
    gated = model_of("--activation-fn", "swiglu", data=data)
    assert (gated["activation"], gated["ffn_dim"]) == ("swiglu", 32)
    both = ["--encoder-use-glu", "--decoder-use-glu", "--activation-fn", "gelu"]
    later = model_of(*both, data=data)
    assert (later["activation"], later["ffn_dim"]) == ("geglu", 64)
    big = model_of(data=data, arch="transformer_wmt_en_de_big_t2t")
    assert (big["norm_position"], big["activation_dropout"], big["num_heads"]) == ("pre", 0.1, 16)
    assert model_of("--relu-dropout", "0.2", data=data)["activation_dropout"] == 0.2
    assert big["share_embeddings"] == "none"


def test_adapters_and_averages(data: Path) -> None:
    experiment = translated(command("adapters", data / "spm", "--store-ema")).experiment
    adapters = experiment["model"]["adapters"]
    assert len(adapters["ids"]) == 11 and adapters["active"] == "hi"
    assert (adapters["reduction"], adapters["activation"], adapters["norm"]) == (2, "gelu", "last")
    assert experiment["train"]["trainable"] == ["adapters.hi"]
    lora = translated(command("lora", data / "spm")).experiment
    assert lora["model"]["lora"] == {
        "modules": ["key", "value"], "rank": 8, "alpha": 16, "dropout": 0.05,
        "rank_stabilized": False,
    }  # fmt: skip
    assert lora["train"]["trainable"] == ["lora"]
    assert experiment["train"]["ema"] == {"decay": 0.9999, "warmup": 0, "every": 1}


REFUSED = [
    (["--adaptive-input"], "--adaptive-input: of language models; refused for others"),
    (["--sample-break-mode", "eos"], "--sample-break-mode: `none`, `eos`"),
    (["--encoder-layers", "[(8, 3)]"], "--encoder-layers: a list belongs to --arch fconv"),
    (["--arch", "lstm_lm"], "--arch lstm_lm: belongs to --task language_modeling"),
    (
        ["--task", "masked_lm", "--mask-prob", "0.2"],
        "--arch transformer_tiny: --task masked_lm goes",
    ),
    (["--task=multilingual_denoising", "--mask", "0.3"], "not supported; write an experiment"),
    (["--encoder-layers", "4", "--dropuot", "0.1"], "no flag --dropuot .*did you mean '--dropout'"),
    (["--optimizer", "lamb"], "--optimizer lamb: not supported; there are adam"),
    (["--lr-scheduler", "tri_stage"], "--lr-scheduler tri_stage: not supported"),
    (["--criterion", "ctc"], "--criterion ctc: give one of cross_entropy"),
    (["--mask", "0.3"], "--mask: which one, --mask-length says"),
    (["--arch", "lightconvv"], "--arch lightconvv: no such .*did you mean 'lightconv'"),
    (["--arch", "lightconv", "--encoder-glu", "maybe"], "--encoder-glu maybe: give True or False"),
    (["--weight-dropout", "0.1"], "--weight-dropout: belongs to --arch lightconv"),
    (["--encoder-ffn-embed-dim", "128"], "--encoder-ffn-embed-dim 128 and --decoder-ffn-embed"),
    (["--max-tokens", "many"], "--max-tokens many: should be a whole number"),
    (["--update-freq", "4,2"], "--update-freq 4,2: give one whole number"),
    (["--lr"], "--lr: needs a value"),
    (["--fp16=1"], "--fp16: takes no value"),
    (["--kd-args", "[1]"], "--kd-args .*should be a JSON object"),
    (["other"], "other: the command has one folder of data"),
    (["--lora-args", '{"rank": 8}'], "--lora-args rank: no such key; there are r, alpha"),
    (["--encoder-add-adapters"], "--encoder-adapter-ids is missing"),
    (["--encoder-learned-pos"], "--encoder-learned-pos True and --decoder-learned-pos False"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_what_cannot_be_translated_is_refused_by_name(
    flags: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("rms", data / "spm", *flags)
    assert cli.main(["from-fairseq", "--", *words]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and "Traceback" not in captured.err
    assert not captured.out


def test_refusals_are_reported_together(data: Path) -> None:
    flags = ["--adaptive-input", "--use-bmuf", "--quant-noise-pq", "0.1"]
    with pytest.raises(UserError) as error:
        translated(command("rms", data / "spm", *flags))
    assert len(str(error.value).splitlines()) == 3


def test_a_refused_flag_that_changes_nothing_is_accepted(data: Path) -> None:
    translated(command("rms", data / "spm", "--quant-noise-pq", "0", "--base-layers", "0"))


def test_files_are_written_and_accepted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command("iwslt", data / "spm", "--sentencepiece-model", str(data / "spm.model"))
    assert cli.main(["from-fairseq", "--out", "new", "--", *words]) == 0
    printed = capsys.readouterr().out
    assert "ds-seq check new/experiment.yaml" in printed
    config = load_experiment(tmp_path / "new" / "experiment.yaml")
    assert config.train.deepspeed == "new/deepspeed.json"
    assert cli.main(["check", "new/experiment.yaml"]) == 0
    text = (tmp_path / "new" / "experiment.yaml").read_text(encoding="utf-8")
    assert "# --share-decoder-input-output-embed" in text and "# Without effect:" in text
    assert all(len(line) <= 100 or "/" in line for line in text.splitlines())
    assert cli.main(["from-fairseq", "--out", "new", "--", *words]) == 2  # exists already


def test_all_architectures_are_valid_models(data: Path) -> None:
    others = (*RECURRENT_PRESETS, *CONVOLUTIONAL_PRESETS, *ROBERTAS)
    for arch in (n for n in ARCHITECTURES if n not in others and not n.startswith(LANGUAGE_MODELS)):
        more = ["--deepspeed_moe", "enc,dec", "--num-experts", "2"] * ("moe" in arch)
        assert model_of(*more, data=data, arch=arch)["d_model"] in (64, 512, 768, 1024, 1536)


@pytest.mark.parametrize("arch", sorted(RECURRENT_PRESETS))
def test_lstm_models_are_those_of_the_flags(arch: str, data: Path) -> None:
    read = RecurrentConfig(**model_of(data=data, arch=arch))
    ours = RecurrentConfig(name="recurrent", preset=arch, share_embeddings="none", output_bias=True)
    assert read.num_params(1000) == ours.num_params(1000)
    for stack in STACKS:
        for place in ("in", "out"):
            assert read.dropout_of(stack, place) == ours.dropout_of(stack, place)
    more = ["--encoder-bidirectional", "--encoder-hidden-size", "64", "--decoder-attention", "0"]
    other = model_of(*more, "--share-decoder-input-output-embed", data=data, arch=arch)
    assert (other["bidirectional"], other["encoder_hidden_dim"]) == (True, 64)
    assert (other["attention"], other["share_embeddings"]) == (False, "decoder")
    with pytest.raises(UserError, match="--decoder-attention maybe: give 1 or 0"):
        model_of("--decoder-attention", "maybe", data=data, arch=arch)
    with pytest.raises(UserError, match="--encoder-hidden-size: belongs to --arch lstm"):
        model_of("--encoder-hidden-size", "64", data=data)


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "FROM_FAIRSEQ.md"
    assert page.read_text(encoding="utf-8") == flags_page(), (
        "run: ds-seq from-fairseq --flags > docs/FROM_FAIRSEQ.md"
    )


def test_help_needs_no_torch() -> None:
    from tests.fresh import words_printed_by

    code = "import sys, ds_seq.commands.from_fairseq; print(*{'torch'} & {*sys.modules})"
    assert words_printed_by(code) == []


def test_convolutions_are_those_of_the_flags(data: Path) -> None:
    more = ["--encoder-conv-type", "lightweight", "--decoder-kernel-size-list", "[3,5,5,5,5,7]"]
    more += ["--encoder-conv-dim", "256", "--weight-softmax", "false"]
    model = TransformerConfig(**model_of(*more, data=data, arch="lightconv_iwslt_de_en"))
    encoder, decoder = model.convolution_of("encoder"), model.convolution_of("decoder")
    assert encoder is not None and decoder is not None
    assert (encoder.name, decoder.name) == ("lightweight_convolution", "dynamic_convolution")
    assert (encoder.width, decoder.width) == (256, None)
    assert not (encoder.glu or encoder.weight_softmax or encoder.input_dropout)
    assert decoder.sizes(6) == [3, 5, 5, 5, 5, 7] and decoder.weight_dropout == 0.1
    for preset in ("lightconv_wmt_en_de", "lightconv_wmt_zh_en_big"):
        read = TransformerConfig(**model_of("--share-all-embeddings", data=data, arch=preset))
        ours = TransformerConfig(preset=preset)
        assert read.num_params(1000) == ours.num_params(1000)
        for stack in STACKS:
            ours_of, read_of = ours.convolution_of(stack), read.convolution_of(stack)
            assert ours_of is not None and read_of is not None
            dropouts = [
                (each.dropped(model.attention_dropout), each.input_dropout)
                for each, model in ((ours_of, ours), (read_of, read))
            ]
            assert dropouts[0] == dropouts[1]
