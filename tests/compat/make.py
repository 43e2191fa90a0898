"""Make the artifacts of this folder with the version of ds_seq that Python finds.

    python tests/compat/make.py FOLDER

They are made once per version and never again: `README.md` says which version made which folder.
Everything goes through the commands, in a working folder of its own, so that paths are relative.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
import ds_seq  # noqa: E402 - another version if PYTHONPATH says so; the tests are always this one's

sys.path.insert(0, str(REPOSITORY))
from tests.compat.made import (  # noqa: E402
    MODELS,
    RESUMED,
    STUDENT,
    hypotheses,
    last_update,
    losses_after,
    resume_options,
)
from tests.data.toy import write_toy  # noqa: E402

_DENSE = """\
name: dense
run_dir: runs/dense
data:
  source_lang: en
  target_lang: de
  dir: data
  raw:
    train: {source: text/train.en, target: text/train.de}
    valid: {source: text/valid.en, target: text/valid.de}
  max_source_length: 24
  max_target_length: 24
  vocab: {size: 200, model_type: bpe}
model:
  {d_model: 16, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 24, dropout: 0.1,
    norm_position: post, positions: learned, activation: swiglu, share_embeddings: decoder,
    max_positions: 32}
optimizer: {name: adamw, lr: 1e-2, betas: [0.9, 0.98]}
scheduler: {name: inverse_sqrt, warmup_updates: 60}
train:
  {max_tokens: 1000, clip_norm: 1.0, max_updates: 250, log_every: 50, validate_every: null,
    save_every: 1000, keep_last: 1, tensorboard: false}
generation: {beam: 3}
"""
_MOE = """\
extends: dense.yaml
name: moe
run_dir: runs/moe
model:
  norm_position: pre
  positions: rotary
  activation: relu
  share_embeddings: all
  moe: {num_experts: 4, top_k: 2, placement: both, every: 2, residual: true}
criterion: {name: model_and_base, loss_weights: {load_balance: 0.01, router_z: 0.001}}
"""
_SIGMOID = """\
extends: dense.yaml
name: sigmoid
run_dir: runs/sigmoid
model:
  norm_position: pre
  positions: sinusoidal
  activation: gelu
  share_embeddings: none
  moe: {num_experts: 4, top_k: 2, router: sigmoid, placement: both, every: 2, shared_experts: 1,
    capacity_factor: null}
criterion: {name: model_and_base, loss_weights: {router_z: 0.001}}
"""


def run(*arguments: str | Path) -> None:
    """One command of ``ds-seq``; on failure so does this."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environ["PYTHONPATH"] = str(Path(ds_seq.__file__).parents[1])
    subprocess.run([sys.executable, "-m", "ds_seq", *arguments], check=True, env=environ)


def make_data() -> None:
    """Text and shards; the vocabulary without tables of Unicode, which would be its largest part.

    Toy text needs no normalization.
    """
    write_toy(Path("text"), train=600, held_out=10)
    for name, text in {"dense": _DENSE, "moe": _MOE, "sigmoid": _SIGMOID}.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    run("prepare", "dense.yaml")
    path = Path("data/vocab.model")
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.precompiled_charsmap = b""
    path.write_bytes(model.SerializeToString())
    path.with_name("vocab.json").unlink()  # from now on it is a vocabulary that was put there
    run("prepare", "dense.yaml")
    shutil.rmtree("data/clean")


def make_models() -> None:
    """Runs, exports and a teacher cache."""
    for name in ("dense", "moe", "sigmoid"):
        run("train", f"{name}.yaml")
    run("export", "runs/dense", "--out", "dense.safetensors")
    run("export", "runs/moe", "--out", "moe_export")
    run("export", "runs/sigmoid", "--out", "sigmoid.safetensors")
    run("teacher-cache", "runs/moe", "--data", "data", "--top-k", "4", "--out", "cache",
        "--splits", "train")  # fmt: skip


def expected() -> dict[str, object]:
    """Translations with scores, and losses of resumed runs and of a student of the cache."""
    translations = {}
    for name, model in MODELS.items():
        run("generate", model, "--input", "text/test.en", "--output", "out.jsonl",
            "--format", "jsonl", "--n-best", "2")  # fmt: skip
        translations[name] = hypotheses(Path("out.jsonl"))
    losses = {}
    for name in RESUMED:
        folder, copy = Path("runs", name), Path("resumed", name)
        shutil.copytree(folder, copy)
        options = [f"run_dir={copy}", *resume_options(last_update(folder))]
        run("train", folder / "config.yaml", *options, "--resume")
        losses[name] = losses_after(copy, last_update(folder))
    student = Path(__file__).with_name("student.yaml").resolve()
    run("train", student)
    losses[STUDENT] = losses_after(Path("runs", STUDENT), 0)
    return {"made_by": ds_seq.__version__, "translations": translations, "losses": losses}


def main(folder: Path) -> None:
    """Make everything in a temporary folder, then take what is to be kept."""
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        make_data()
        make_models()
        text = json.dumps(expected(), indent=1, ensure_ascii=False) + "\n"
        Path("expected.json").write_text(text, encoding="utf-8")
        folder.mkdir(parents=True)
        for name in ("text/test.en", "expected.json", "data", "cache", *MODELS.values()):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                shutil.copytree(name, target)
            else:
                shutil.copy(name, target)
    print(f"{folder}: {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
