"""Language models compared with fairseq's: outputs, gradients, an import, and perplexities.

    python benchmarks/parity/fairseq_lm.py --python VENV/bin/python              # fairseq-fixed
    python benchmarks/parity/fairseq_lm.py --python VENV/bin/python --text FOLDER

The first compares models with the same weights. With `--text`, a folder with the files `train`,
`valid` and `test`, one sentence a line, fairseq also trains a small model for 20 updates; the
imported checkpoint is compared with it: logits in float64, and the perplexity of the test text
without and with a context window by `fairseq-eval-lm` and `ds-seq perplexity`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import LIMIT, Cases, Names, Part, linear, norm, parser_of, report
from parity.fairseq_axes import FIRST_POSITION, SINUSOIDAL, layer_names

from ds_seq.runs.formats.imported import text_inputs_of
from ds_seq.runs.open import load_run

HERE = Path(__file__).parent
SIDE = HERE / "fairseq_lm_side.py"
_BLOCK, _CONTEXTS = 64, (0, 32)
_BLOCKS = ["--tokens-per-sample", str(_BLOCK), "--sample-break-mode", "none"]
_RUN = ["--cpu", "--num-workers", "0", "--max-tokens", "1024"]
_TRAINING = (
    "--task language_modeling --arch transformer_lm_gpt --decoder-embed-dim 64 "
    "--decoder-input-dim 64 --decoder-output-dim 64 --decoder-ffn-embed-dim 128 "
    "--decoder-layers 2 --decoder-attention-heads 4 --share-decoder-input-output-embed "
    "--optimizer adam --lr 0.003 --max-update 20 --no-epoch-checkpoints"
)
_PERPLEXITY_LIMIT = 0.005  # fairseq-eval-lm prints two digits


def _case(**fields: object) -> tuple[dict[str, object], Names]:
    """Return the fields of a model and where its weights come from."""
    names: Names = {"target_embedding.weight": [Part("decoder.embed_tokens.weight")]}
    if fields.get("share_embeddings") == "none":
        names["output.weight"] = [Part("decoder.output_projection.weight")]
    if fields.get("positions") == "learned":
        table = Part("decoder.embed_positions.weight", skip=FIRST_POSITION)
        names["decoder.positions.weight"] = [table]
    if fields.get("embedding_norm"):
        names |= norm("decoder.embedding_norm", "decoder.layernorm_embedding", True)
    if fields.get("norm_position") == "pre":
        names |= norm("decoder.final_norm", "decoder.layer_norm", True)
    for layer in range(2):
        names |= layer_names(f"decoder.layers.{layer}", has_source=False)
    return {"name": "decoder_only", **fields}, names


def adaptive_output(cutoffs: Sequence[int]) -> Names:
    """Return the names of an adaptive softmax with tables of its own."""
    head = "decoder.adaptive_softmax.head.weight"
    names: Names = {
        "output.bands.0.weight": [Part(head, end=cutoffs[0])],
        "output.choice.weight": [Part(head, skip=cutoffs[0])],
    }
    for number in range(len(cutoffs)):
        tail = f"decoder.adaptive_softmax.tail.{number}"
        names[f"output.bands.{number + 1}.weight"] = [Part(f"{tail}.2.weight")]
        names[f"output.bands.{number + 1}.projection"] = [Part(f"{tail}.0.weight", last_first=True)]
    return names


def _adaptive(is_tied: bool) -> tuple[dict[str, object], Names]:
    """Return the fields of a model with adaptive softmax, and where its weights come from."""
    fields, names = _case(positions=SINUSOIDAL, norm_position="pre", share_embeddings="none")
    if not is_tied:
        del names["output.weight"]
        bands = {"cutoffs": CUTOFFS, "input": False}
        return {**fields, "activation": "gelu", "adaptive": bands}, names | adaptive_output(CUTOFFS)
    names = {ours: parts for ours, parts in names.items() if ".layers." in ours}
    for band in range(len(CUTOFFS) + 1):
        place = f"decoder.embed_tokens.embeddings.{band}"
        names[f"target_embedding.bands.{band}.weight"] = [Part(f"{place}.0.weight")]
        names[f"target_embedding.bands.{band}.projection"] = [Part(f"{place}.1.weight")]
    names["output.choice.weight"] = [Part("decoder.adaptive_softmax.head.class_proj.weight")]
    bands = {"cutoffs": CUTOFFS, "tie_projections": True}
    more = {"share_embeddings": "all", "final_norm": False, "adaptive": bands}
    return {**fields, **more}, names


def _characters() -> tuple[dict[str, object], Names]:
    """Return the fields of a model that reads bytes, and where its weights come from."""
    fields, names = _case(positions=SINUSOIDAL, norm_position="pre", share_embeddings="none")
    ours, theirs = "target_embedding", "decoder.embed_tokens"
    names[f"{ours}.weight"] = [Part(f"{theirs}.char_embeddings.weight")]
    names[f"{ours}.symbols"] = [Part(f"{theirs}.symbol_embeddings")]
    for kind in ("convolutions", "highway"):
        place = kind if kind == "convolutions" else "highway.layers"
        for number in range(2):
            names |= linear(f"{ours}.{kind}.{number}", f"{theirs}.{place}.{number}", bias=True)
    names |= linear(f"{ours}.projection", f"{theirs}.projection", bias=True)
    network = {"filters": [[1, 8], [3, 12]], "embedding_dim": 4, "highway_layers": 2}
    return {**fields, "activation": "gelu", "character_embeddings": network}, names


CUTOFFS = [12, 20]
CASES: Cases = {
    "transformer_lm": _case(positions=SINUSOIDAL, share_embeddings="none"),
    "transformer_lm_gpt, tied": _case(
        positions=SINUSOIDAL, norm_position="pre", activation="gelu"
    ),
    "transformer_lm_gpt3_small": _case(
        positions="learned", norm_position="pre", activation="gelu"
    ),
    "embedding norm, unscaled": _case(
        positions="learned", norm_position="pre", share_embeddings="none", embedding_norm=True,
        embedding_scale=False,
    ),
    "adaptive, tied": _adaptive(is_tied=True),
    "characters": _characters(),
    "adaptive softmax": _adaptive(is_tied=False),
}  # fmt: skip


def compare_training(python: str, text: Path, folder: Path) -> int:
    """Train with fairseq, import, and compare; return 1 if something differs."""
    data, checkpoints, run = folder / "data", folder / "checkpoints", folder / "run"
    fairseq = [python, str(HERE / "fairseq_run.py")]
    splits = [f"--{split}pref={text / split}" for split in ("train", "valid", "test")]
    words = ["--only-source", *splits, "--thresholdsrc", "3", "--workers", "1"]
    _run(*fairseq, "preprocess", *words, "--destdir", str(data))
    words = [*_TRAINING.split(), *_BLOCKS, *_RUN, "--save-dir", str(checkpoints)]
    _run(*fairseq, "train", str(data), *words)
    checkpoint = checkpoints / "checkpoint_last.pt"
    ours = [sys.executable, "-m", "ds_seq"]
    dictionary = ["--dict", str(data / "dict.txt")]
    print(_run(*ours, "import", "fairseq", str(checkpoint), *dictionary, "--out", str(run))[-200:])
    model = load_run(run, "best", dtype=torch.float64).model
    out = folder / "logits.pt"
    _run(python, str(SIDE), str(out), str(data), str(checkpoint))
    largest, count = 0.0, 0
    for tokens, expected in torch.load(out):
        with torch.no_grad():
            found = model(text_inputs_of(tokens)).logits
        largest, count = max(largest, float((found - expected).abs().max())), count + found.numel()
    print(f"{count:,} logits of fairseq and of the import differ by at most {largest:.1e}")
    failed = not largest <= LIMIT
    for context in _CONTEXTS:
        window = ["--context-window", str(context)]
        words = [*_BLOCKS, *_RUN, *window, "--path", str(checkpoint), "--gen-subset", "test"]
        printed = _run(*fairseq, "eval_lm", str(data), *words)
        theirs = float(re.findall(r"Perplexity: ([\d.]+)", printed)[-1])
        words = ["--input", str(text / "test"), "--block-tokens", str(_BLOCK), *window, "--json"]
        measured = json.loads(_run(*ours, "perplexity", str(run), *words, errors=False))
        perplexity = measured["perplexity"]
        print(
            f"context {context:>3}: perplexity {perplexity:.3f}, fairseq-eval-lm {theirs:.2f} "
            f"({measured['tokens']:,} tokens)"
        )
        failed |= not abs(perplexity - theirs) <= _PERPLEXITY_LIMIT
    return int(failed)


def _run(*words: str, errors: bool = True) -> str:
    """Run a command; return what it prints, with its messages if `errors`."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + (done.stderr if errors else "")


def main(argv: Sequence[str]) -> int:
    """Compare everything, and return 1 if something differs."""
    parser = parser_of(__doc__, "fairseq-fixed")
    parser.add_argument("--text", type=Path, help="folder with the files train, valid and test")
    options = parser.parse_args(argv)
    failed = report(CASES, options.python, SIDE)
    if options.text is not None:
        with tempfile.TemporaryDirectory() as folder:
            failed |= compare_training(options.python, options.text, Path(folder))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
