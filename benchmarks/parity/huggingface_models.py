"""huggingface_side.py: small models of transformers with random weights, and their tokenizers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sacremoses
import sentencepiece as spm
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")
_SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}
_T5 = {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
_NAMES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Made(NamedTuple):
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any
    search: dict[str, Any]
    """Options of the search."""
    first: int | None = None
    """The language with which targets begin."""
    last: int | None = None
    """The language after the end of targets, which is also their start symbol."""
    target_ids: dict[str, int] | None = None
    """The vocabulary of the target, if it has one of its own."""


def _bytes(text: list[str], specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _unigram(text: list[str], specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _framed(tokenizer: Tokenizer, before: str, **names: str) -> Any:
    around = [(name, tokenizer.token_to_id(name)) for name in {before, "</s>"} - {""}]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A </s>".strip(), special_tokens=around
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMES, **names)


def _bart(text: list[str]) -> Made:
    raw = _bytes(text, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = _framed(raw, "<s>", bos_token="<s>", mask_token="<mask>")
    config = transformers.BartConfig(
        vocab_size=raw.get_vocab_size(), forced_bos_token_id=0, decoder_start_token_id=2, **_SIZES
    )
    return Made(transformers.BartForConditionalGeneration(config), tokenizer, {})


def _nllb(text: list[str]) -> Made:
    raw = _unigram(text, ["<s>", "<pad>", "</s>", "<unk>", *LANGUAGES])
    tokenizer = _framed(raw, LANGUAGES[0], bos_token="<s>")
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer), decoder_start_token_id=2, scale_embedding=True, **_SIZES
    )
    first = raw.token_to_id(LANGUAGES[1])
    model = transformers.M2M100ForConditionalGeneration(config)
    return Made(model, tokenizer, {"forced_bos_token_id": first}, first)


def _pieces(text: list[str]) -> list[tuple[str, float]]:
    """Return the pieces of a unigram model without symbols, as mBART's tokenizers want them."""
    raw = _unigram(text, ["<unk>"])
    pieces = json.loads(raw.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in pieces if piece not in ("<unk>", *_NAMES.values())]


def _mbart_tokenizer(kind: str, vocabulary: list[tuple[str, float]]) -> Any:
    """Return a tokenizer of mBART; transformers 4 makes it of a file only."""
    languages = {"src_lang": "en_XX", "tgt_lang": "de_DE"}
    if int(transformers.__version__.partition(".")[0]) >= 5:
        return getattr(transformers, f"{kind}Tokenizer")(vocab=vocabulary, **languages)
    unknown = [piece for piece, _ in vocabulary].index("<unk>")
    raw = Tokenizer(models.Unigram(vocabulary, unknown))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    with tempfile.TemporaryDirectory() as folder:
        raw.save(f"{folder}/tokenizer.json")
        fast = getattr(transformers, f"{kind}TokenizerFast")
        return fast(tokenizer_file=f"{folder}/tokenizer.json", **languages)


def _mbart(text: list[str]) -> Made:
    codes = [(code, 0.0) for code in ("ar_AR", "cs_CZ", "de_DE", "en_XX")]
    names = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary = [*names, *_pieces(text), *codes, ("<mask>", 0.0)]
    tokenizer = _mbart_tokenizer("MBart", vocabulary)
    last = tokenizer.convert_tokens_to_ids("de_DE")
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), decoder_start_token_id=last, scale_embedding=True,
        activation_function="relu", **_SIZES,
    )  # fmt: skip
    return Made(transformers.MBartForConditionalGeneration(config), tokenizer, {}, last=last)


def _mbart50(text: list[str]) -> Made:
    names = [(name, 0.0) for name in ("<unk>", "<s>", "</s>")]
    tokenizer = _mbart_tokenizer("MBart50", [*names, *_pieces(text)])
    first = tokenizer.convert_tokens_to_ids("de_DE")
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), decoder_start_token_id=2, scale_embedding=False, **_SIZES
    )
    model = transformers.MBartForConditionalGeneration(config)
    return Made(model, tokenizer, {"forced_bos_token_id": first}, first)


def _fsmt(text: list[str]) -> Made:
    folder = Path(tempfile.mkdtemp())
    moses = sacremoses.MosesTokenizer("en")
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=320, end_of_word_suffix="</w>")
    raw.train_from_iterator([moses.tokenize(line, return_str=True) for line in text], trainer)
    model = json.loads(raw.to_str())["model"]
    pieces, symbols = sorted(model["vocab"]), ["<s>", "<pad>", "</s>", "<unk>"]
    sides = {"src": [*symbols, *pieces], "tgt": [*symbols, *reversed(pieces), "extra</w>"]}
    files = {}
    for side, names in sides.items():
        files[f"{side}_vocab_file"] = str(folder / f"vocab-{side}.json")
        ids = {piece: number for number, piece in enumerate(names)}
        (folder / f"vocab-{side}.json").write_text(json.dumps(ids), encoding="utf-8")
    files["merges_file"] = str(folder / "merges.txt")
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    tokenizer = transformers.FSMTTokenizer(langs=["en", "de"], **files)
    shutil.rmtree(folder)
    config = transformers.FSMTConfig(
        langs=["en", "de"], src_vocab_size=len(sides["src"]), tgt_vocab_size=len(sides["tgt"]),
        **_SIZES,
    )  # fmt: skip
    made = transformers.FSMTForConditionalGeneration(config)
    for stack in (made.model.encoder, made.model.decoder):
        stack.embed_positions.weight.requires_grad = False
    ids = {piece: number for number, piece in enumerate(sides["tgt"])}
    return Made(made, tokenizer, {}, target_ids=ids)


def _nllb_moe(text: list[str]) -> Made:
    made = _nllb(text)
    config = transformers.NllbMoeConfig(
        vocab_size=len(made.tokenizer), decoder_start_token_id=2, num_experts=4,
        encoder_sparse_step=2, decoder_sparse_step=1, **_SIZES,
    )  # fmt: skip
    return made._replace(model=transformers.NllbMoeForConditionalGeneration(config))


def _switch(text: list[str]) -> Made:
    raw = _unigram(text, ["<pad>", "</s>", "<unk>"])
    config = transformers.SwitchTransformersConfig(
        vocab_size=raw.get_vocab_size(), d_kv=8, decoder_start_token_id=0, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **_T5,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    return Made(model, _framed(raw, ""), {})


def _pegasus(text: list[str]) -> Made:
    raw = _unigram(text, ["<pad>", "</s>", "<unk>"])
    config = transformers.PegasusConfig(
        vocab_size=raw.get_vocab_size(), pad_token_id=0, eos_token_id=1, scale_embedding=True,
        decoder_start_token_id=0, activation_function="relu", **_SIZES,
    )  # fmt: skip
    return Made(transformers.PegasusForConditionalGeneration(config), _framed(raw, ""), {})


def _t5(kind: str, function: str, head: int, is_tied: bool) -> Callable[[list[str]], Made]:
    def make(text: list[str]) -> Made:
        raw = _unigram(text, ["<pad>", "</s>", "<unk>"])
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=raw.get_vocab_size(), d_kv=head, feed_forward_proj=function,
            tie_word_embeddings=is_tied, decoder_start_token_id=0, **_T5,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        return Made(model, _framed(raw, ""), {})

    return make


def _marian(text: list[str]) -> Made:
    folder = Path(tempfile.mkdtemp())
    stem = str(folder / "pieces")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=stem, vocab_size=200, hard_vocab_limit=False,
        minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    pieces = spm.SentencePieceProcessor(model_file=f"{stem}.model")
    names = ["</s>", "<unk>"]
    names += [p for p in map(pieces.id_to_piece, range(len(pieces))) if p not in (*names, "<s>")]
    ids = {piece: number for number, piece in enumerate([*names, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    for side in ("source", "target"):
        shutil.copy(f"{stem}.model", folder / f"{side}.spm")
    settings = {"source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    pad = ids["<pad>"]
    config = transformers.MarianConfig(
        vocab_size=len(ids), decoder_vocab_size=len(ids), pad_token_id=pad, eos_token_id=0,
        decoder_start_token_id=pad, forced_eos_token_id=0, activation_function="swish",
        scale_embedding=True, **_SIZES,
    )  # fmt: skip
    model = transformers.MarianMTModel(config)
    model.final_logits_bias.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    return Made(model, tokenizer, {"bad_words_ids": [[pad]]})


MODELS: dict[str, Callable[[list[str]], Made]] = {
    "bart": _bart,
    "mbart": _mbart,
    "mbart50": _mbart50,
    "fsmt": _fsmt,
    "nllb": _nllb,
    "nllb_moe": _nllb_moe,
    "switch": _switch,
    "pegasus": _pegasus,
    "marian": _marian,
    "t5": _t5("T5", "relu", 8, is_tied=True),
    "t5_1_1": _t5("T5", "gated-gelu", 6, is_tied=False),
    "mt5": _t5("MT5", "gated-gelu", 8, is_tied=False),
}
