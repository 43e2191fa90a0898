"""`ds-seq import fairseq`: models that compute what the checkpoint does, or a reason why not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq import cli
from ds_seq.data.fairseq import open_fairseq
from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq import importing
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.runs.open import load_run, open_run
from tests.data.fairseq import write_checkpoints, write_recorded
from tests.unit.runs.fairseq_model import Tensors, arguments, shared_model, write

Capture = pytest.CaptureFixture[str]
NAMES = (
    "post", "learned", "none", "old", "swiglu_rms", "stacked", "factorized", "gated_adapters",
    "alibi", "fused", "languages", "lightweight", "dynamic", "fconv", "fconv_shared",
    "bart",
)  # fmt: skip


def run_import(path: Path, out: Path, *more: str) -> int:
    words = ["import", "fairseq", str(path), "--dict", str(path.parent / "dict.txt")]
    return cli.main([*words, "--out", str(out), *more])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that fairseq wrote, what it computed, and the data that they are for."""
    folder = tmp_path_factory.mktemp("recorded")
    write_recorded(folder)
    write_checkpoints(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_model_computes_what_fairseq_computed(name: str, recorded: Path, tmp_path: Path) -> None:
    words = ["--dict", str(recorded / "spm" / "dict.en.txt"), "--out", str(tmp_path / "run")]
    more = ["--sentencepiece", str(recorded / "spm.model"), "--source-lang", "en"]
    more += ["--target-lang", "de"]  # which a model of several languages does not name
    assert cli.main(["import", "fairseq", str(recorded / f"{name}.pt"), *words, *more]) == 0
    run = load_run(tmp_path / "run", "best", dtype=torch.float64)
    pairs = json.loads((recorded / "pairs.json").read_text(encoding="utf-8"))
    expected = torch.load(recorded / f"{name}.logits.pt")
    for (source, target), theirs in zip(pairs, expected, strict=True):
        with torch.no_grad():
            ours = run.model(inputs_of(source, target)).logits
        assert (ours - theirs).abs().max() < 1e-5  # recorded in float32
    assert (run.card.source_lang, run.card.target_lang) == ("en", "de")


MULTILINGUAL: dict[str, Any] = {
    "task": "translation_multi_simple_epoch", "langs": ["de", "en"], "encoder_langtok": "tgt",
    "decoder_langtok": True, "source_lang": None, "target_lang": None,
}  # fmt: skip


def multilingual(folder: Path, **more: Any) -> Path:
    """A checkpoint whose two last symbols are the languages, which are not in `dict.txt`."""
    path = write(folder, shared_model(), arguments(**{**MULTILINGUAL, **more}))
    lines = (folder / "dict.txt").read_text().splitlines()
    (folder / "dict.txt").write_text("".join(f"{line}\n" for line in lines[:-2]))
    return path


def test_the_languages_of_a_multilingual_model_open_its_sentences(tmp_path: Path) -> None:
    path, run, names = multilingual(tmp_path), tmp_path / "run", tmp_path / "names"
    pair = ["--source-lang", "en", "--target-lang", "de"]
    assert run_import(path, run, *pair) == 0
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("word1 word2\n", encoding="utf-8")
    assert cli.main(["generate", str(run), "--input", str(text), "--output", str(out),
                     "--format", "fairseq", "--max-len-b", "5"]) == 0  # fmt: skip
    source, *rows = out.read_text(encoding="utf-8").splitlines()
    assert source == "S-0\t__de__ word1 word2"  # as --encoder-langtok tgt says
    found, scores = (row.split("\t")[-1].split() for row in (rows[0], rows[2]))
    assert len(scores) == len(found) + 2 and "__de__" not in found
    with_file = multilingual(tmp_path / "other", langs=None, lang_dict="there/langs.txt")
    names.write_text("de\nen\n")
    assert run_import(with_file, tmp_path / "again", "--lang-dict", str(names), *pair) == 0
    both = [open_run(folder, "best").tokenizers.fingerprint for folder in (run, tmp_path / "again")]
    assert both[0] == both[1]
    tokenizers = open_run(run, "best").tokenizers
    with pytest.raises(UserError, match="no symbols of languages in front"):
        open_fairseq("", "train", tokenizers.fingerprint, folders=["x"], languages=("en", "de"),
                     tokenizers=tokenizers)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "pair", "message"),
    [
        ({}, ("fr", "de"), "--source-lang fr: no language of the checkpoint; there are de, en"),
        ({"langs": None, "lang_dict": "x/l.txt"}, ("en", "de"), "from x/l.txt; give that file as"),
        ({"langs": None}, ("en", "de"), "lists no languages; give them as --lang-dict"),
        (
            {"lang_tok_replacing_bos_eos": True},
            ("en", "de"),
            "--lang-tok-replacing-bos-eos: cannot",
        ),
        ({"langtoks_specs": ["main", "dae"]}, ("en", "de"), "only main can be imported"),
        ({"langs": ["de", "en", "fr"]}, ("en", "de"), r"say \(25, 8\)"),
    ],
)
def test_languages_that_cannot_be_imported_are_named(
    given: dict[str, Any], pair: tuple[str, str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = multilingual(tmp_path, **given)
    codes = ["--source-lang", pair[0], "--target-lang", pair[1]]
    assert run_import(path, tmp_path / "run", *codes) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_denoising_model_reads_its_start_symbol_and_has_one_language(
    recorded: Path, tmp_path: Path
) -> None:
    words = ["--dict", str(recorded / "spm" / "dict.en.txt"), "--out", str(tmp_path / "run")]
    words += ["--sentencepiece", str(recorded / "spm.model")]
    assert cli.main(["import", "fairseq", str(recorded / "bart.pt"), *words]) == 0
    run = open_run(tmp_path / "run", "best")
    source = run.tokenizers.source
    assert source.pieces(source.symbols.framed(source.encode("a")))[0] == "<s>"
    assert source.pieces([len(source) - 1]) == ["<mask>"]
    assert run.card.source_lang == run.card.target_lang == "und"
    assert cli.main(["import", "fairseq", str(recorded / "bart.pt"), *words[:2], *words[4:],
                     "--out", str(tmp_path / "german"), "--source-lang", "de"]) == 0  # fmt: skip
    assert open_run(tmp_path / "german", "best").card.target_lang == "de"


def test_every_tensor_is_accounted_for(tmp_path: Path, capsys: Capture) -> None:
    state = shared_model()
    assert run_import(write(tmp_path, state, arguments()), tmp_path / "run") == 0
    printed = capsys.readouterr().out
    listed = re.findall(r"^(taken|renamed|joined|left) +(\S+)", printed, re.MULTILINE)
    assert [name for _, name in listed] == list(state)
    counts = {kind: sum(k == kind for k, _ in listed) for kind in ("renamed", "joined", "left")}
    assert (
        f"{counts['renamed']} renamed, {counts['joined']} joined, {counts['left']} left" in printed
    )
    assert counts["left"] == 5 and "trained for 12 updates" in printed


def test_the_run_is_generated_from_and_exported(tmp_path: Path) -> None:
    path = write(tmp_path, shared_model(), arguments())
    run, text = tmp_path / "run", tmp_path / "text"
    assert run_import(path, run) == 0
    text.write_text("word1 word2\nword3\n", encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["generate", str(run), "--input", str(text), "--output", str(out),
                     "--max-len-b", "5"]) == 0  # fmt: skip
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    assert cli.main(["export", str(run), "--out", str(tmp_path / "x.safetensors")]) == 0
    again = open_run(tmp_path / "x.safetensors", "best")
    assert again.require_experiment().model == open_run(run, "best").model_config


def test_experts_of_all_ranks_are_read(tmp_path: Path, capsys: Capture) -> None:
    """rank 0 writes its experts into the checkpoint, and DeepSpeed one file for each."""
    state = shared_model(num_experts=4, decoder_layers=2)
    given = arguments(arch="transformer_ds_moe_tiny", deepspeed_moe="enc,dec", num_experts=4,
                      top_k=1, decoder_layers=2, ep_world_size=2)  # fmt: skip
    pattern = re.compile(r"deepspeed_experts\.([23])\.")
    path = write(tmp_path, {k: v for k, v in state.items() if not pattern.search(k)}, given)
    assert run_import(path, tmp_path / "run") == 2
    assert "lacks encoder.layers.1.experts" in capsys.readouterr().err
    folder = tmp_path / "deepspeed_moe" / path.name / "default"
    folder.mkdir(parents=True)
    for layer, stack in enumerate(("encoder", "decoder")):
        for expert in range(4):
            place = f"{stack}.layers.1.experts.deepspeed_moe.experts.deepspeed_experts.{expert}."
            part = {k: v for k, v in state.items() if k.startswith(place)}
            name = f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt"
            torch.save(part, folder / name)
    assert run_import(path, tmp_path / "run") == 0
    moe = open_run(tmp_path / "run", "best").model_config.moe
    assert moe is not None and (moe.num_experts, moe.eval_capacity_factor) == (4, 4.0)


def test_fused_projections_and_other_names_of_old_files(tmp_path: Path) -> None:
    state = shared_model()
    for place in ("encoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{place}.{part}_proj.{kind}") for part in "qkv"]
            state[f"{place}.in_proj_{kind}"] = torch.cat(parts)
    assert run_import(write(tmp_path, state, arguments()), tmp_path / "run") == 0


def table_of(run: Path) -> Tensor:
    return load_run(run, "best").model.state_dict()["target_embedding.weight"]


def test_a_mean_of_checkpoints_and_stored_averages(tmp_path: Path, capsys: Capture) -> None:
    first, second = shared_model(), shared_model()
    table = "encoder.embed_tokens.weight"
    for name in (table, "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        first[name] = first[name].half()
        second[name] = first[table].float() + 0.5
    path = write(tmp_path, first, arguments())
    other = write(tmp_path / "other", second, arguments())
    assert run_import(path, tmp_path / "mean", "--average", str(other)) == 0
    torch.testing.assert_close(table_of(tmp_path / "mean"), first[table].float() + 0.25)
    assert run_import(path, tmp_path / "run", "--ema") == 2
    assert "--ema: has no averages of weights" in capsys.readouterr().err
    stored = torch.load(path, weights_only=False)
    stored["extra_state"] = {"ema": second}
    torch.save(stored, path)
    assert run_import(path, tmp_path / "ema", "--ema") == 0
    torch.testing.assert_close(table_of(tmp_path / "ema"), second[table])
    without_bias(second)
    other = write(tmp_path / "other", second, arguments())
    assert run_import(path, tmp_path / "run", "--average", str(other)) == 2
    assert "layers.0.fc1.bias has the shape none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_low_rank_changes_are_in_the_weights_already(tmp_path: Path, capsys: Capture) -> None:
    """As VarunGumma/fairseq stores them, which adds them to the weights before it saves."""
    state = shared_model()
    for name in ("encoder.layers.0.self_attn.q_proj", "decoder.layers.0.encoder_attn.v_proj"):
        state |= {f"{name}.lora_A": torch.ones(2, 8), f"{name}.lora_B": torch.ones(8, 2)}
    given = arguments(lora_args='{"r": 2, "target_modules": "q_proj,v_proj"}')
    assert run_import(write(tmp_path, state, given), tmp_path / "run") == 0
    left = [line for line in capsys.readouterr().out.splitlines() if "lora_" in line]
    assert len(left) == 4 and all(re.match(r"left .*already in the weight", x) for x in left)
    assert open_run(tmp_path / "run", "best").model_config.lora is None


def with_more(state: dict[str, Tensor]) -> None:
    state["encoder.layers.0.adapter_block.adapters.hi.up.weight"] = torch.ones(2)


def without_bias(state: dict[str, Tensor]) -> None:
    del state["encoder.layers.0.fc1.bias"]


def with_two_more(state: dict[str, Tensor]) -> None:
    state |= {"encoder.a": torch.ones(2), "decoder.b": torch.ones(2)}


def not_a_number(state: dict[str, Tensor]) -> None:
    state["encoder.layers.0.fc1.bias"][3] = float("nan")


def of_integers(state: dict[str, Tensor]) -> None:
    state["encoder.layers.0.fc1.bias"] = torch.ones(12, dtype=torch.int64)


def wider(state: dict[str, Tensor]) -> None:
    state["encoder.layers.0.fc1.weight"] = torch.ones(13, 8)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (with_more, {}, r"has encoder\.layers\.0\.adapter_block\.\S+, which no model"),
        (with_two_more, {}, r"has encoder\.a, decoder\.b, which no model"),
        (not_a_number, {}, r"layers\.0\.fc1\.bias has values that are no finite"),
        (of_integers, {}, r"layers\.0\.fc1\.bias has values that are no finite"),
        (None, {"encoder_layers": "x"}, "--encoder-layers 'x': .* a number there"),
        (None, {"encoder_layers": 0}, r"best\.pt: model\.encoder_layers: should be at least 1"),
        (without_bias, {}, r"lacks encoder\.layers\.0\.fc1\.bias"),
        (wider, {}, r"have the shape \(13, 8\), but the arguments .* say \(12, 8\)"),
        (None, {"adaptive_softmax_cutoff": "10,20"}, "--adaptive-softmax-cutoff 10,20: of lang"),
        (None, {"decoder_ffn_embed_dim": 16}, "--encoder-ffn-embed-dim 12 and --decoder-ffn"),
        (None, {"arch": "nat"}, "--arch nat: only Transformers, BART, RoBERTa, lightconv"),
        (None, {"encoder_glu": False}, "--encoder-glu: belongs to --arch lightconv"),
        (None, {"source_lang": None}, "names no languages; add --source-lang"),
        (None, {"encoder_learned_pos": True}, "--encoder-learned-pos True and --decoder-learned"),
        (None, {"activation_fn": "tanh"}, "--activation-fn tanh: no such activation"),
        (None, {"rope_args": '{"theta": 10000}'}, "--rope-args: rotates half of each head"),
        (None, {"alibi_args": '{"type": "asymmetrical"}'}, "--alibi-args asymmetrical: distances"),
        (
            None,
            {"encoder_kv_attention_heads": 1, "decoder_kv_attention_heads": 1},
            "--encoder-kv-attention-heads 1: holds for self-attention only there",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    change: Any, given: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    state = shared_model()
    if change is not None:
        change(state)
    assert run_import(write(tmp_path, state, arguments(**given)), tmp_path / "run") == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there_are_named(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path, shared_model(), arguments())
    for option in ("--dict", "--target-dict", "--codes", "--sentencepiece", "--lang-dict"):
        assert run_import(path, tmp_path / "run", option, str(tmp_path / "none")) == 2
        assert (
            capsys.readouterr().err
            == f"ds-seq: error: {option} {tmp_path}/none: no such file; correct the path\n"
        )


def test_another_result_is_an_error(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the mapping of names would show: here queries and keys change places."""
    original = importing.Converter._join

    def turned(self: Any, name: str, ours: str, module: str, parts: str) -> Tensor:
        return original(self, name, ours, module, {"qkv": "kqv"}.get(parts, parts))

    monkeypatch.setattr(importing.Converter, "_join", turned)
    state = shared_model()
    assert run_import(write(tmp_path, state, arguments()), tmp_path / "run") == 2
    assert "the imported model computes something else: logits differ" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_dictionaries_and_text_to_compare_on(tmp_path: Path, capsys: Capture) -> None:
    tensors = Tensors()
    tensors.add("encoder.embed_tokens.weight", 24, 8)
    tensors.add("decoder.embed_tokens.weight", 14, 8)
    tensors.add("decoder.output_projection.weight", 14, 8)
    for stack, count in (("encoder", 2), ("decoder", 1)):
        tensors.layers(stack, count)
        tensors.norm(f"{stack}.layer_norm")
    given = arguments(share_all_embeddings=False, encoder_normalize_before=True,
                      decoder_normalize_before=True)  # fmt: skip
    path = write(tmp_path, tensors.state, given)
    other = tmp_path / "dict.de.txt"
    other.write_text("".join(f"wort{n} 1\n" for n in range(10)), encoding="utf-8")
    assert (
        run_import(path, tmp_path / "run") == 2
    )  # the dictionary of the source is not the target's
    assert "--dict names another dictionary" in capsys.readouterr().err
    text = tmp_path / "text"
    text.write_text("word1 word5 unknown\n\nword2\n", encoding="utf-8")
    more = ["--target-dict", str(other), "--text", str(text), "--dtype", "bf16"]
    assert run_import(path, tmp_path / "run", *more) == 0
    sizes = open_run(tmp_path / "run", "best").tokenizers.sizes
    assert (sizes.source, sizes.target) == (24, 14)
