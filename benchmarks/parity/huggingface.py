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
from ds_seq.config.data import DataConfig
from ds_seq.config.load import read_experiment
from ds_seq.models import build_model
from ds_seq.runs.export import export, write_export
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.text.build import train_tokenizer, train_tokenizers
from ds_seq.text.moses import Moses
from ds_seq.text.tokenizer import Tokenizers
from tests.data.fairseq import data_section, write_recorded

SIDE = Path(__file__).with_name("huggingface_side.py")
LIMIT, FSMT = 1e-5, "fsmt"
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
    FSMT: {"positions": {"name": "sinusoidal", "offset": 2}, "share_embeddings": "decoder"},
    "nllb-moe": {
        **_PRE,
        "positions": {"name": "sinusoidal", "offset": 2},
        "moe": {"num_experts": 4, "top_k": 2},
    },
}


def _run(python: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([python, str(SIDE), *arguments], capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr.decode(errors='replace')[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_models(folder: Path, names: Sequence[str], python: str, text: Path) -> float:
    """Make and import all folders, print a row for each, and return the largest error of a score.

    Each is made by a process of its own.
    """
    worst = 0.0
    print(f"{'read':<18}{'scores':>10}{'ids':>8}{'greedy':>9}{'beam 4':>9}", flush=True)
    for name in names:
        path = folder / name
        _run(python, str(text), str(folder), name)
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
        row = "".join(f"{cell:>9}" for cell in cells)
        print(f"{path.name:<18}{error:>10.1e}{ids:>8}{row}", flush=True)
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
    joint, models = _experiment({}), {}
    vocab = Tokenizers.shared(train_tokenizer(joint.data, joint.data.vocab, [text]))
    sides = _of_fairseq(folder)
    # FSMT makes punctuation plain, which ds_seq does not
    lines = [Moses("en", FSMT).normalize(line) for line in lines]
    kinds = {name: kind for name, kind in WRITTEN.items() if has_nllb_moe or name != "nllb-moe"}
    for number, (name, section) in enumerate(kinds.items()):
        data, tokenizers = sides if name == FSMT else (joint.data, vocab)
        config = _experiment(section).model_copy(update={"data": data})
        model = build_model(config.model, tokenizers.sizes, 1, 0, seed=1)
        model.requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        write_export(model, config, tokenizers, folder / f"run{number}")
        export(folder / f"run{number}", folder / f"out{number}", "best", form="hf")
        models[name] = model, tokenizers
    (folder / "lines.json").write_text(json.dumps(lines), encoding="utf-8")
    outs = [str(folder / f"out{number}") for number in range(len(kinds))]
    _run(python, "--read", str(folder / "lines.json"), *outs)
    worst = 0.0
    print(f"\n{'written':<18}{'logits':>10}{'ids':>8}")
    for number, (name, (model, tokenizers)) in enumerate(models.items()):
        found = torch.load(folder / f"out{number}" / "read.pt", weights_only=True)
        error, same = 0.0, 0
        for line, (ids, target, logits) in zip(lines, found, strict=True):
            same += tokenizers.source.symbols.framed(tokenizers.source.encode(line)) == ids
            with torch.no_grad():
                ours = model.double()(inputs_of(ids, target)).logits
            error = max(error, float((ours - logits).abs().max() / logits.abs().max()))
        print(f"{name:<18}{error:>10.1e}{f'{same}/{len(lines)}':>8}")
        worst = max(worst, error, float(same < len(lines)))
    return worst


def _of_fairseq(folder: Path) -> tuple[DataConfig, Tokenizers]:
    """Return the section `data` of two dictionaries of fairseq, and their tokenizers."""
    write_recorded(folder / "recorded")
    section = data_section(folder / "recorded", "bpe", folder / "data")
    for side in ("source", "target"):
        section["vocab"][side]["fairseq"]["moses"] = True
    vocab = {"name": "fairseq_dict", **section["vocab"]}
    languages = {key: section[key] for key in ("source_lang", "target_lang", "dir")}
    data = DataConfig.model_validate({**languages, "vocab": vocab})
    return data, train_tokenizers(data, [])


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
        known = _run(options.python, "--names")
        print(f"transformers {known['transformers']}, torch {torch.__version__}, float64")
        names = options.only or known["names"]
        worst = read_models(folder / "models", names, options.python, options.text)
        if not options.only:
            has_nllb_moe = "nllb_moe" in names
            worst = max(worst, write_models(folder, options.text, options.python, has_nllb_moe))
    # RMSNorm of transformers is in float32 all the same
    print(f"largest error: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
