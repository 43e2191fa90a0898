"""huggingface.py: small models of transformers with their tokenizers, each trained for a moment.

    python huggingface_side.py --names
    python huggingface_side.py TEXT OUT [NAME...]
    python huggingface_side.py --read LINES.json FOLDER...
    python huggingface_side.py --translate LINES.json FOLDER OUT

The first names the architectures. The second writes a folder per architecture as `save_pretrained`
does, with `expected.json`: lines, their ids, log-probabilities of the lines as targets, and what
greedy and beam search answer. The third opens folders, and writes into each the ids of the lines
and their logits as targets, `read.pt`. The fourth writes what greedy and beam search answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_models import MODELS, Made

_UPDATES, _LINES, _BATCH = 1000, 12, 50
MAX_LENGTH = 40
_VERSION = int(transformers.__version__.partition(".")[0])


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
    """Return what transformers makes of the lines.

    The search of FSMT in transformers 4 differs from its own forward pass, so it is left out.
    """
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
        for beam in ((1, 4) if made.target_ids is None or _VERSION >= 5 else ())
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


def known_names() -> list[str]:
    """Return the architectures that this version computes rightly: 5 does not NLLB-MoE."""
    return [each for each in MODELS if _VERSION < 5 or each != "nllb_moe"]


def main(text: str, out: str, names: list[str]) -> None:
    """Make all models, or those of some names."""
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
    short = [line for line in lines if 5 < len(line) < 30]
    for name in names or known_names():
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
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if model.config.model_type != "fsmt":  # its masks overflow in float64
        model = model.double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    settings = model.config.to_dict()
    size = settings.get("tgt_vocab_size", settings.get("vocab_size"))
    start, found = model.config.decoder_start_token_id, []
    for line in lines:
        ids = tokenizer(line)["input_ids"]
        target = [start, *(i % size for i in ids)]
        inputs = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([target])}
        torch.set_default_dtype(model.dtype)  # version 4 makes masks in the default
        logits = model(**inputs, use_cache=False).logits[0]
        torch.set_default_dtype(torch.float32)
        found.append((ids, target, logits.double()))
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
    if sys.argv[1] == "--names":
        print(json.dumps({"transformers": transformers.__version__, "names": known_names()}))
    elif sys.argv[1] == "--read":
        for path in sys.argv[3:]:
            read(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(path))
        print(json.dumps({"transformers": transformers.__version__}))
    elif sys.argv[1] == "--translate":
        texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        translate(texts, Path(sys.argv[3]), Path(sys.argv[4]))
        print(json.dumps({"transformers": transformers.__version__}))
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
