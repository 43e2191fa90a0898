"""Hugging Face folders, read and written, compared with transformers.

    python benchmarks/parity/huggingface.py --text TEXT.en --python VENV/bin/python

`--python` is an interpreter that has transformers, tokenizers and sentencepiece. In: small models
of each architecture, trained for a moment by transformers, are imported; ids of lines, scores of
targets, greedy and beam search are compared. Out: models of ds_seq of each kind that can be
written are exported; transformers opens them, reads and scores the same lines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ds_seq
from ds_seq.config.load import read_experiment
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.export import export, write_export
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.text.build import train_tokenizer
from ds_seq.text.tokenizer import Tokenizers

SIDE = Path(__file__).with_name("huggingface_side.py")
LIMIT = 1e-5
_MOST_NEW_TOKENS = 38  # of 40 with the start and end symbols
_VOCAB, _LINES = 300, 32
_NLLB = Languages("en", "de", "eng_Latn", "deu_Latn")
_CODES = {"nllb": _NLLB, "nllb_moe": _NLLB}
_T5 = {
    "norm": {"name": "rms", "eps": 1e-6},
    "norm_position": "pre",
    "positions": "buckets",
    "linear_bias": False,
    "embedding_scale": False,
}
_PRE = {"norm_position": "pre"}
_LEARNED = {"positions": "learned", "embedding_norm": True, "activation": "gelu"}
WRITTEN: dict[str, dict[str, Any]] = {
    "marian": {"activation": "silu", "output_bias": True},
    "marian, learned": {"positions": "learned"},
    "bart": _LEARNED,
    "mbart": {**_LEARNED, **_PRE},
    "pegasus": _PRE,
    "m2m100": {**_PRE, "positions": {"name": "sinusoidal", "offset": 2}},
    "t5 1.0": _T5,
    "t5 1.1": {**_T5, "activation": "geglu_tanh", "share_embeddings": "inputs", "head_dim": 12},
    "switch": {**_T5, "moe": {"num_experts": 4}},
    "nllb-moe": {
        **_PRE,
        "positions": {"name": "sinusoidal", "offset": 2},
        "moe": {"num_experts": 4, "top_k": 2},
    },
}


def _run(python: str, *arguments: str) -> dict[str, str]:
    done = subprocess.run([python, str(SIDE), *arguments], check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_models(folder: Path) -> float:
    """Import all folders, print a row for each, and return the largest error of a score."""
    worst = 0.0
    print(f"{'read':<18}{'scores':>10}{'ids':>8}{'greedy':>9}{'beam 4':>9}")
    for path in sorted(folder.iterdir()):
        expected = json.loads((path / "expected.json").read_text(encoding="utf-8"))
        result = import_folder(path, path.name, _CODES.get(path.name, Languages("en", "de")))
        out = folder.parent / "runs" / path.name
        out.parent.mkdir(exist_ok=True)
        write_export(result.model, result.config, result.tokenizers, out)
        error, ids = _scores(result.model, result.tokenizers, expected)
        model, cells = ds_seq.load(out), []
        for beam, answers in expected["answers"].items():
            found = model.translate(
                expected["lines"], beam=int(beam), max_len_a=0.0, max_len_b=_MOST_NEW_TOKENS,
                length_penalty=1.0,
            )  # fmt: skip
            ended = [pair for pair in zip(found, answers, strict=True) if pair[1] is not None]
            cells.append(f"{sum(ours == theirs for ours, theirs in ended)}/{len(ended)}")
        print(f"{path.name:<18}{error:>10.1e}{ids:>8}" + "".join(f"{cell:>9}" for cell in cells))
        worst = max(worst, error)
    return worst


@torch.no_grad()
def _scores(
    model: torch.nn.Module, tokenizers: Tokenizers, expected: dict[str, Any]
) -> tuple[float, str]:
    source, target = tokenizers
    order: list[int] = target.permutation()  # type: ignore[attr-defined]
    twin, error, same = model.double(), 0.0, 0
    for line, ids, scores in zip(
        expected["lines"], expected["ids"], expected["scores"], strict=True
    ):
        labels = target.symbols.framed(target.encode(line))
        read = source.symbols.framed(source.encode(line))
        logits = twin(inputs_of(read, [target.symbols.start, *labels[:-1]])).logits
        found = logits.log_softmax(-1)[range(len(labels)), labels]
        error = max(error, float((found - torch.tensor(scores)).abs().max()))
        same += [order[i] for i in read] == ids
    model.float()
    return error, f"{same}/{len(expected['lines'])}"


def write_models(folder: Path, text: Path, python: str, has_nllb_moe: bool) -> float:
    """Export all kinds, print a row for each, and return the largest error of a logit."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line][:_LINES]
    shape = _experiment({}).data
    vocab = train_tokenizer(shape, shape.vocab, [text])
    models = {}
    kinds = {name: kind for name, kind in WRITTEN.items() if has_nllb_moe or name != "nllb-moe"}
    for number, (name, section) in enumerate(kinds.items()):
        config = _experiment(section)
        model = build_seq2seq(config.model, _VOCAB, 1, 0, seed=1).requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        write_export(model, config, Tokenizers.shared(vocab), folder / f"run{number}")
        export(folder / f"run{number}", folder / f"out{number}", "best", form="hf")
        models[name] = model
    (folder / "lines.json").write_text(json.dumps(lines), encoding="utf-8")
    outs = [str(folder / f"out{number}") for number in range(len(kinds))]
    _run(python, "--read", str(folder / "lines.json"), *outs)
    worst = 0.0
    print(f"\n{'written':<18}{'logits':>10}{'ids':>8}")
    for number, (name, model) in enumerate(models.items()):
        found = torch.load(folder / f"out{number}" / "read.pt", weights_only=True)
        error, same = 0.0, 0
        for line, (ids, logits) in zip(lines, found, strict=True):
            own = vocab.symbols.framed(vocab.encode(line))
            same += own == ids
            with torch.no_grad():
                ours = model.double()(inputs_of(ids, [vocab.symbols.start, *ids])).logits
            error = max(error, float((ours - logits).abs().max() / logits.abs().max()))
        print(f"{name:<18}{error:>10.1e}{f'{same}/{len(lines)}':>8}")
        worst = max(worst, error, float(same < len(lines)))
    return worst


def _experiment(section: dict[str, Any]) -> Any:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 4}
    return read_experiment(
        {
            "name": "x",
            "data": {
                "source_lang": "en", "target_lang": "de", "dir": "d", "max_source_length": 64,
                "max_target_length": 64, "vocab": {"size": _VOCAB},
            },
            "model": {**sizes, "ffn_dim": 48, "max_positions": 256, **section},
            "validation": {"metrics": [], "best": "loss"},
        }
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Compare everything, and return 1 if something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has transformers")
    parser.add_argument("--text", type=Path, required=True, help="some 1,500 lines of text")
    parser.add_argument("--only", nargs="*", default=[], help="read these kinds, and write none")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [str(options.text), str(folder / "models"), *options.only]
        versions = _run(options.python, *words)
        print(f"transformers {versions['transformers']}, torch {torch.__version__}, float64")
        has_nllb_moe = (folder / "models" / "nllb_moe").is_dir()
        worst = read_models(folder / "models")
        if not options.only:
            worst = max(worst, write_models(folder, options.text, options.python, has_nllb_moe))
    # RMSNorm of transformers is in float32 all the same
    print(f"largest error: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
