"""Folders of transformers become runs that read, score and translate as transformers does.

The folders in tests/data/huggingface, and what is expected of them, were written by
benchmarks/parity/huggingface_side.py with transformers 5.24.0.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import ds_seq
from ds_seq.config.modifiers import ModifiersConfig
from ds_seq.data.batch import seq2seq_batch
from ds_seq.data.modify import Changes, Modifier
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.runs.export import export, write_export
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.imported import Imported, inputs_of
from ds_seq.text.huggingface import HuggingFaceTokenizer

FOLDERS = Path(__file__).parents[2] / "data" / "huggingface"
NAMES = sorted(path.name for path in FOLDERS.iterdir())
NLLB = Languages("en", "de", "eng_Latn", "deu_Latn")
CODES = {"nllb": NLLB, "nllb_moe": NLLB}
OF_EXPERTS = {
    "expert_capacity",
    "moe_token_dropout",
    "num_sparse_decoder_layers",
    "num_sparse_encoder_layers",
    "router_z_loss_coef",
}
# learned and sinusoidal positions, buckets, gates, two vocabularies, experts; the others are slow
LEARN = ("bart", "fsmt", "nllb_moe", "t5_1_1")
_MOST_NEW_TOKENS = 38  # of 40 with the start and end symbols


@pytest.fixture(scope="module", params=NAMES)
def imported(request: pytest.FixtureRequest) -> tuple[str, Imported, dict[str, Any]]:
    name = request.param
    expected = json.loads((FOLDERS / name / "expected.json").read_text(encoding="utf-8"))
    result = import_folder(FOLDERS / name, name, CODES.get(name, Languages("en", "de")))
    return name, result, expected


def _order(result: Imported) -> list[int]:
    tokenizer = result.tokenizers.source
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer.permutation()


def test_lines_have_the_ids_of_transformers(imported):
    _, result, expected = imported
    order, source = _order(result), result.tokenizers.source
    framed = [source.symbols.framed(ids) for ids in source.encode_lines(expected["lines"])]
    assert [[order[i] for i in ids] for ids in framed] == expected["ids"]
    assert [source.decode(ids) for ids in framed] == expected["lines"]
    again = pickle.loads(pickle.dumps(source))
    assert again.encode(expected["lines"][0]) == source.encode(expected["lines"][0])


def test_targets_have_the_scores_of_transformers(imported):
    _, result, expected = imported
    source, target = result.tokenizers
    for line, scores in zip(expected["lines"], expected["scores"], strict=True):
        labels = target.symbols.framed(target.encode(line))
        inputs = inputs_of(
            source.symbols.framed(source.encode(line)), [target.symbols.start, *labels[:-1]]
        )
        with torch.no_grad():
            logits = result.model(inputs).logits
        found = logits.log_softmax(-1)[range(len(labels)), labels]
        torch.testing.assert_close(found, torch.tensor(scores), atol=2e-5, rtol=1e-5)


def test_the_export_translates_like_transformers(imported, tmp_path):
    _, result, expected = imported
    write_export(result.model, result.config, result.tokenizers, tmp_path / "run")
    model = ds_seq.load(tmp_path / "run")
    limits = {"max_len_a": 0.0, "max_len_b": _MOST_NEW_TOKENS, "length_penalty": 1.0}
    for beam, answers in expected["answers"].items():
        found = model.translate(expected["lines"], beam=int(beam), **limits)
        ended = [
            (mine, line) for mine, line in zip(found, answers, strict=True) if line is not None
        ]
        assert len(ended) > len(answers) / 2
        assert [mine for mine, _ in ended] == [line for _, line in ended]


def test_changed_pairs_keep_their_symbols_and_get_no_others(imported):
    _, result, expected = imported
    tokenizers = result.tokenizers
    pairs = [
        tuple(side.symbols.framed(side.encode(line)) for side in tokenizers)
        for line in expected["lines"]
    ]
    config = ModifiersConfig(lower_case=1.0, token_switch=0.9)
    modifier = Modifier(Changes(**config.model_dump()), tokenizers)
    changed = modifier(pairs, np.arange(len(pairs)), (1, 1))
    assert changed != pairs
    for side, tokenizer in enumerate(tokenizers):
        symbols = tokenizer.symbols
        for pair in changed:
            inside = symbols.unframed(pair[side])
            assert pair[side] == symbols.framed(inside)
            assert not tokenizer.special_ids & set(inside)


def test_a_prefix_stands_in_front_of_every_source(tmp_path):
    prefix = "translate English to German: "
    plain, result = (
        import_folder(FOLDERS / "t5", "t5", Languages("en", "de", source_prefix=text))
        for text in (None, prefix)
    )
    source, target = result.tokenizers
    lines = ["Select the type.", ""]
    assert source.encode(lines[0]) == plain.tokenizers.source.encode(prefix + lines[0])
    assert source.encode("") == [] and target.encode_lines(lines) == [
        plain.tokenizers.target.encode(line) for line in lines
    ]
    assert [source.decode(ids) for ids in source.encode_lines(lines)] == lines
    write_export(result.model, result.config, result.tokenizers, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "best", form="hf")
    loaded, bare = ds_seq.load(tmp_path / "run"), result.config.data.vocab.huggingface
    assert bare.source_prefix == prefix
    assert len(loaded.translate(lines, beam=1, max_len_a=0.0, max_len_b=5)[1]) == 0


def test_a_side_is_named_where_each_has_a_vocabulary():
    options = {"source_code": None, "target_code": None}
    for name, side, message in (("fsmt", None, "set data.vocab.source"), ("bart", "source", "one")):
        path = str(FOLDERS / name)
        with pytest.raises(UserError, match=message):
            HuggingFaceTokenizer.train([], size=9, path=path, side=side, **options)


def test_an_export_of_an_import_is_the_folder_again(imported, tmp_path):
    name, result, _ = imported
    write_export(result.model, result.config, result.tokenizers, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "best", form="hf")
    folders = (FOLDERS / name, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    # NLLB-MoE's dropout of experts, which evaluation multiplies by, becomes part of their weights
    for key in {key for key in before.keys() & after.keys() if ".experts." not in key}:
        first = 2 if "embed_positions" in key else 0  # rows in front of it are not used
        torch.testing.assert_close(after[key][first:], before[key][first:], atol=1e-6, rtol=1e-6)
    for key in before.keys() ^ after.keys():  # tied, computed, or zeros
        assert any(word in key for word in ("embed_", "lm_head", "final_logits_bias")), key
    given, found = (json.loads((folder / "config.json").read_text()) for folder in folders)
    changed = {key for key in given.keys() & found.keys() if given[key] != found[key]}
    assert changed <= {"forced_eos_token_id", "activation_function"} | OF_EXPERTS  # swish is silu
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    symbols, order = result.tokenizers.target.symbols, result.tokenizers.target.permutation()
    assert generation["decoder_start_token_id"] == order[symbols.start]
    forced = [order[number] for number in symbols.opening]  # the language, or `<s>` of BART
    assert generation.get("forced_bos_token_id") == (forced[0] if forced else None)


@pytest.mark.parametrize(
    "imported",
    [name if name in LEARN else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
    indirect=True,
)
def test_an_import_learns_and_what_it_learned_is_exported(imported, tmp_path):
    name, result, expected = imported
    model, lines = copy.deepcopy(result.model).requires_grad_(True), expected["lines"][:6]
    source, target = (
        TokenBlock.of([side.symbols.framed(ids) for ids in side.encode_lines(text)])
        for side, text in zip(result.tokenizers, (lines, lines[::-1]), strict=True)
    )
    batch = seq2seq_batch(source, target, result.tokenizers.symbols)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        logits = model.eval()(batch.inputs).logits
        loss = cross_entropy(logits, batch.labels[batch.mask])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    write_export(model, result.config, result.tokenizers, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "best", form="hf")
    again = import_folder(tmp_path / "out", "again", CODES.get(name, Languages()))
    with torch.no_grad():
        logits = again.model(batch.inputs).logits
    assert float(cross_entropy(logits, batch.labels[batch.mask])) < losses[-2]


@pytest.mark.parametrize("kept", ["embed_tokens", "output_projection"])
def test_tied_tables_of_fsmt_may_be_stored_under_either_name(kept, tmp_path):
    """Versions of transformers differ in which one they leave out."""
    folder = _copy(tmp_path, "fsmt")
    tensors = load_file(folder / "model.safetensors")
    names = [f"model.decoder.{name}.weight" for name in ("embed_tokens", "output_projection")]
    (table,) = [tensors.pop(name) for name in names if name in tensors][:1]
    tensors[f"model.decoder.{kept}.weight"] = table
    save_file(tensors, folder / "model.safetensors")
    found, expected = (
        import_folder(each, "x", Languages("en", "de")).model for each in (folder, FOLDERS / "fsmt")
    )
    assert torch.equal(found.target_embedding.weight, expected.target_embedding.weight)


def test_every_tensor_is_accounted_for(imported):
    _, result, _ = imported
    assert all(each.ours or each.note for each in result.entries)


def _copy(tmp_path: Path, name: str, **changes: Any) -> Path:
    folder = tmp_path / name
    shutil.copytree(FOLDERS / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "led"}, "model_type 'led' cannot be imported; there are bart, mbart"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "its model is code of its own"),
        ({"decoder_ffn_dim": 32}, "decoder_ffn_dim 32 has no counterpart"),
        ({"activation_function": "selu"}, "activation selu has no counterpart"),
        ({"encoder_layers": 3}, r"lacks model\.encoder\.layers\.2\.self_attn\.q_proj"),
        ({"encoder_layers": 1}, r"has no place for model\.encoder\.layers\.1\."),
        ({"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}, "have the shape"),
        ({"vocab_size": 12}, "shared.weight has the shape .* says vocab_size 12"),
    ],
)
def test_what_has_no_counterpart_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        import_folder(_copy(tmp_path, "bart", **changes), "x", Languages("en", "de"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nllb_moe", {"router_bias": True}, "router_bias true has no counterpart"),
        ("nllb_moe", {"router_dtype": "bfloat16"}, "router_dtype bfloat16 has no counterpart"),
        ("nllb_moe", {"second_expert_policy": "best"}, "second_expert_policy best has no"),
        ("nllb_moe", {"moe_eval_capacity_token_fraction": -1.0}, "fraction -1.0, a number of tok"),
        ("nllb_moe", {"encoder_sparse_step": 1}, r"lacks model\.encoder\.layers\.0\.ffn\.router"),
        ("nllb_moe", {"num_experts": 3}, r"has no place for .*\.expert_3\."),
        ("switch", {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 has .* has 0 or 0.01"),
        ("switch", {"dense_act_fn": "gated-gelu"}, "dense_act_fn gated-gelu has no counterpart"),
        ("switch", {"num_sparse_encoder_layers": 2}, r"lacks encoder\.block\.0\.layer\.1\.mlp\.r"),
    ],
)
def test_experts_without_counterpart_are_named(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        import_folder(_copy(tmp_path, name, **changes), "x", CODES.get(name, Languages("en", "de")))


def test_options_of_experts_become_ours(tmp_path):
    changes = {"batch_prioritized_routing": True, "moe_eval_capacity_token_fraction": 0.5}
    changes |= {"second_expert_policy": "random", "normalize_router_prob_before_dropping": True}
    folder = _copy(tmp_path, "nllb_moe", **changes)
    config = import_folder(folder, "x", NLLB).config
    moe = config.model.moe
    assert moe is not None
    # half of all tokens are as many as the even share of two choices of four experts
    assert (moe.drop, moe.eval_capacity_factor) == ("probability", 1.0)
    assert (moe.second_expert, moe.normalization) == ("random", "before_dropping")
    assert config.criterion.model_dump()["loss_weights"]["load_balance"] == 0.001


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        import_folder(tmp_path / "none", "x", Languages("en", "de"))
    folder = _copy(tmp_path, "nllb")
    with pytest.raises(UserError, match=r"has no language 'de'.*huggingface\.target_code"):
        import_folder(folder, "x", Languages("en", "de", "eng_Latn"))
    with pytest.raises(UserError, match="names no languages; add --source-lang"):
        import_folder(folder, "x", Languages())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        import_folder(folder, "x", CODES["nllb"])
    weights.unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has only pytorch_model\.bin, which could run code"):
        import_folder(folder, "x", CODES["nllb"])


def test_a_model_of_languages_without_a_list_of_them_is_refused(tmp_path):
    folder = _copy(tmp_path, "marian")
    shutil.move(folder / "source.spm", folder / "sentencepiece.bpe.model")
    codes = ["__en__", "__de__"]
    with pytest.raises(UserError, match="names no languages; add the list"):
        _tokenizer(folder, None)
    content = json.dumps({"additional_special_tokens": codes})
    (folder / "special_tokens_map.json").write_text(content, encoding="utf-8")
    tokenizer = _tokenizer(folder, 2)
    count = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    sides = [tokenizer.for_side(code, is_source=True) for code in ("en", "de")]
    assert [side.symbols.opening for side in sides] == [(count,), (count + 1,)]


def _tokenizer(folder: Path, more: int | None) -> HuggingFaceTokenizer:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] += more or 0
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    codes = {"source_code": None, "target_code": None}
    return HuggingFaceTokenizer.train([], size=config["vocab_size"], path=str(folder), **codes)
