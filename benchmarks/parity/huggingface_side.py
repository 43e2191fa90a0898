"""huggingface.py: small models of transformers with their tokenizers, each trained for a moment.

    python huggingface_side.py TEXT OUT [NAME...]
    python huggingface_side.py --read LINES.json FOLDER...
    python huggingface_side.py --translate LINES.json FOLDER OUT

The first writes a folder per architecture as `save_pretrained` does, with `expected.json`: lines,
their ids, log-probabilities of the lines as targets, and what greedy and beam search answer. The
second opens folders, and writes into each the ids of the lines and their logits as targets,
`read.pt`. The third writes what greedy and beam search answer.
"""

from __future__ import annotations

import json
import shutil
import sys
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
_UPDATES, _LINES, _BATCH = 1000, 12, 50
_NAMES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
MAX_LENGTH = 40


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


def _mbart(text: list[str]) -> Made:
    names = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = [(code, 0.0) for code in ("ar_AR", "cs_CZ", "de_DE", "en_XX")]
    vocabulary = [*names, *_pieces(text), *codes, ("<mask>", 0.0)]
    tokenizer = transformers.MBartTokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="de_DE")
    last = tokenizer.convert_tokens_to_ids("de_DE")
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), decoder_start_token_id=last, scale_embedding=True,
        activation_function="relu", **_SIZES,
    )  # fmt: skip
    return Made(transformers.MBartForConditionalGeneration(config), tokenizer, {}, last=last)


def _mbart50(text: list[str]) -> Made:
    vocabulary = [(name, 0.0) for name in ("<unk>", "<s>", "</s>")] + _pieces(text)
    tokenizer = transformers.MBart50Tokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="de_DE")
    first = tokenizer.convert_tokens_to_ids("de_DE")
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), decoder_start_token_id=2, scale_embedding=False, **_SIZES
    )
    model = transformers.MBartForConditionalGeneration(config)
    return Made(model, tokenizer, {"forced_bos_token_id": first}, first)


def _fsmt(text: list[str]) -> Made:
    folder = Path(sys.argv[2]) / "fsmt.files"
    folder.mkdir(parents=True)
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
    folder = Path(sys.argv[2]) / "marian.files"
    folder.mkdir(parents=True)
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


def _inputs(tokenizer: Any, lines: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer(lines, return_tensors="pt", padding=True)
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _labels(made: Made, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if made.first is not None:
        labels[:, 0] = made.first
    if made.last is not None:
        ends = (labels != -100).sum(1) - 1
        labels[range(len(labels)), ends] = made.last
    if made.target_ids is not None:
        names = made.tokenizer.get_src_vocab()
        known = {number: made.target_ids[piece] for piece, number in names.items()}
        labels = torch.tensor([[known.get(i, i) for i in row] for row in labels.tolist()])
    return labels


def _run(made: Made, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the logits of targets."""
    if made.last is not None:
        start = labels.new_full((len(labels), 1), made.last)
    else:
        start = labels.new_full((len(labels), 1), made.model.config.decoder_start_token_id)
    pad = made.tokenizer.pad_token_id
    shifted = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, pad)], 1)
    # with a cache, FSMT masks nothing
    output = made.model(**inputs, decoder_input_ids=shifted, use_cache=False)
    logits: torch.Tensor = output.logits
    return logits


def _train(made: Made, lines: list[str]) -> None:
    """Draw all weights anew, so that no part is hidden by zeros or ones, and learn to end."""
    parameters = [p for p in made.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(float(parameter.ndim == 1) + 0.3 * torch.randn(parameter.shape))
    optimizer = torch.optim.Adam(parameters, lr=0.005)
    inputs = _inputs(made.tokenizer, lines)
    for _ in range(_UPDATES):
        made.model.train()
        labels = _labels(made, inputs)
        logits = _run(made, inputs, labels)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _expected(made: Made, lines: list[str]) -> dict[str, Any]:
    inputs = _inputs(made.tokenizer, lines)
    labels = _labels(made, inputs)
    logits = _run(made, inputs, labels).double()
    scores = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    answers = {
        str(beam): _answers(
            made,
            made.model.generate(
                **inputs, num_beams=beam, max_length=MAX_LENGTH, do_sample=False,
                length_penalty=1.0, early_stopping=True, **made.search,
            ),
        )
        for beam in (1, 4)
    }  # fmt: skip
    return {
        "lines": lines,
        "ids": [made.tokenizer(line)["input_ids"] for line in lines],
        "scores": [
            [
                round(float(s), 6)
                for s, label in zip(row, ids, strict=True)
                if label not in (-100, made.last)
            ]
            for row, ids in zip(scores, labels, strict=True)
        ],
        "answers": answers,
    }


def _answers(made: Made, rows: torch.Tensor) -> list[str | None]:
    """Return the texts; None for one that reached the limit, where no end symbol is added."""
    end = made.model.config.eos_token_id
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    # the first id is the start symbol, which may be the end symbol
    return [
        made.tokenizer.decode(row, **options) if end in row[1:] else None for row in rows.tolist()
    ]


def main(text: str, out: str, names: list[str]) -> None:
    """Make all models, or those of some names."""
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
    short = [line for line in lines if 5 < len(line) < 30]
    is_right = int(transformers.__version__.partition(".")[0]) < 5  # about NLLB-MoE
    for name in names or [each for each in MODELS if is_right or each != "nllb_moe"]:
        torch.manual_seed(1)
        made = MODELS[name](lines)
        _train(made, short[:_LINES])
        folder = Path(out) / name
        made.model.eval().save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        expected = _expected(made, short[:_LINES])
        content = json.dumps(expected, ensure_ascii=False)
        (folder / "expected.json").write_text(content, encoding="utf-8")
    print(json.dumps({"transformers": transformers.__version__}))


@torch.no_grad()
def read(lines: list[str], folder: Path) -> None:
    """Open a folder, and write how it reads and scores the lines."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start, found = model.config.decoder_start_token_id, []
    for line in lines:
        ids = tokenizer(line)["input_ids"]
        target = torch.tensor([[start, *ids]])
        inputs = {"input_ids": torch.tensor([ids]), "decoder_input_ids": target}
        logits = model(**inputs, use_cache=False).logits[0]
        found.append((ids, logits))
    torch.save(found, folder / "read.pt")


@torch.no_grad()
def translate(lines: list[str], folder: Path, out: Path) -> None:
    """Open a folder, and write its translations of the lines by the width of the beam.

    One that reaches the limit is None: its end symbol is forced, and costs nothing.
    """
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers: dict[str, list[str | None]] = {"1": [], "4": []}
    for first in range(0, len(lines), _BATCH):
        inputs = _inputs(tokenizer, lines[first : first + _BATCH])
        for beam, found in answers.items():
            rows = model.generate(
                **inputs, num_beams=int(beam), max_length=MAX_LENGTH, do_sample=False,
                length_penalty=1.0, early_stopping=True,
            )  # fmt: skip
            lengths = (rows != tokenizer.pad_token_id).sum(1).tolist()
            texts = tokenizer.batch_decode(
                rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found += [
                None if length == MAX_LENGTH else text
                for length, text in zip(lengths, texts, strict=True)
            ]
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        for path in sys.argv[3:]:
            read(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(path))
        print(json.dumps({"transformers": transformers.__version__}))
    elif sys.argv[1] == "--translate":
        texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        translate(texts, Path(sys.argv[3]), Path(sys.argv[4]))
        print(json.dumps({"transformers": transformers.__version__}))
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
