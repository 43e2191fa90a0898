"""experts_pay.py: its text in many languages, and the experiments of both systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from multilingual import Pair, is_held_out, pairs_of

DENSE, MOE = "dense", "moe"
WARMUP = 400
DECAY = 0.2  # share of the updates, at the end, over which the learning rate falls
HELD_OUT_EACH = 100  # sentences of each language for validation; others, as many at most, are test


class Shape(NamedTuple):
    """A model: its widths and which layers have experts."""

    d_model: int
    ffn_dim: int
    layers: int
    vocab_size: int
    expert_layers: tuple[list[int], list[int]]
    """Layers with experts of encoder and decoder, from 0."""
    expert_ffn: int
    num_experts: int = 16
    top_k: int = 2

    @property
    def experts(self) -> dict[str, Any]:
        """Section `model.moe`: a router that balances by a bias, and no dropped tokens."""
        encoder, decoder = self.expert_layers
        return {
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "layers": {"encoder": encoder, "decoder": decoder},
            "ffn_dim": self.expert_ffn,
            "router": "sigmoid",
            "capacity_factor": None,
        }


SMALL = Shape(96, 384, 3, 3000, ([1, 2], [0, 1, 2]), 192, num_experts=32)
MEDIUM = Shape(192, 768, 4, 6000, ([1, 2, 3], [1, 2, 3]), 384)


class Held(NamedTuple):
    """Pairs that are not trained on."""

    valid: list[Pair]
    test: list[Pair]


def write_text(files: Mapping[str, Path], general: Mapping[str, Path], folder: Path) -> None:
    """Write `train`, `valid` and `test` of each language, and of a larger general text.

    English sentences of a held-out text are left out of all training texts.

    Args:
        files: a table for each target language.
        general: tables of the splits of the general text; may be empty.
        folder: where `SPLIT/NAME.tsv` is written.
    """
    held = {code: _held(path) for code, path in files.items()}
    texts = {
        "train": {code: _train(path) for code, path in files.items()},
        "valid": {code: each.valid for code, each in held.items()},
        "test": {code: each.test for code, each in held.items()},
    }
    for split, path in general.items():
        texts[split]["general"] = list(pairs_of(path))
    hidden = {pair.source for split in ("valid", "test") for pair in chain(*texts[split].values())}
    for split, by_name in texts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, pairs in by_name.items():
            rows = (
                f"{pair.source}\t{pair.target}\n"
                for pair in pairs
                if split != "train" or not (pair.source in hidden or is_held_out(pair.source))
            )
            (folder / split / f"{name}.tsv").write_text("".join(rows), encoding="utf-8")


def _held(path: Path) -> Held:
    pairs = [pair for pair in pairs_of(path) if is_held_out(pair.source)]
    return Held(pairs[:HELD_OUT_EACH], pairs[HELD_OUT_EACH : 2 * HELD_OUT_EACH])


def _train(path: Path) -> list[Pair]:
    return [pair for pair in pairs_of(path) if not is_held_out(pair.source)]


class Run(NamedTuple):
    """One training of the benchmark."""

    system: str
    """`DENSE` or `MOE`."""
    schedule: str
    """`constant` or `decay`."""
    seed: int
    updates: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.schedule}-{self.system}-{self.seed}"

    @property
    def scheduler(self) -> dict[str, Any]:
        """Section `scheduler`."""
        warmup = {"warmup_updates": min(WARMUP, self.updates // 4)}
        if self.schedule == "constant":
            return {"name": "constant", **warmup}
        return {"name": "warmup_stable_decay", **warmup, "decay_fraction": DECAY}


def experiment(folder: Path, run: Run, shape: Shape) -> dict[str, Any]:
    """Return the experiment of a run.

    Args:
        folder: holds `text` and `data-N`, and gets `runs/NAME`.
        run: the run.
        shape: the model.
    """
    tags = {code: f"<2{code}>" for code in languages_of(folder / "text")}
    cross_entropy: dict[str, Any] = {"name": "cross_entropy", "label_smoothing": 0.0}
    with_routers = {
        "name": "model_and_base",
        "base": cross_entropy,
        "loss_weights": {"load_balance": 0, "router_z": 0.001},
    }
    is_moe = run.system == MOE
    return {
        "name": run.name,
        "run_dir": str(folder / "runs" / run.name),
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(folder / f"data-{shape.vocab_size}"),
            "corpora": dict(_entries(folder / "text", "train")),
            "raw": {
                split: [entry for _, entry in _entries(folder / "text", split)]
                for split in ("valid", "test")
            },
            "mixing": {"language_tags": tags},
            "max_source_length": 128,
            "max_target_length": 128,
            "vocab": {
                "size": shape.vocab_size,
                "model_type": "bpe",
                "user_symbols": list(tags.values()),
            },
        },
        "model": {
            "d_model": shape.d_model,
            "ffn_dim": shape.ffn_dim,
            "encoder_layers": shape.layers,
            "decoder_layers": shape.layers,
            "num_heads": shape.d_model // 24,
            "dropout": 0.1,
            "norm_position": "pre",
            **({"moe": shape.experts} if is_moe else {}),
        },
        "criterion": with_routers if is_moe else cross_entropy,
        "optimizer": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.98]},
        "scheduler": run.scheduler,
        "train": {
            "seed": run.seed,
            "max_tokens": 8192,
            "clip_norm": 1.0,
            "max_updates": run.updates,
            "log_every": 50,
            "validate_every": 200,
            "tensorboard": False,
            "ema": {"decay": 0.99, "validate_raw": True},
        },
        "validation": {"metrics": [], "best": "loss"},
    }


def languages_of(text: Path) -> list[str]:
    """Return the target languages of the texts."""
    return sorted({_language(name) for name in _names(text, "train")})


def _language(name: str) -> str:
    return "de" if name == "general" else name


def _names(text: Path, split: str) -> list[str]:
    return sorted(path.stem for path in (text / split).glob("*.tsv"))


def _entries(text: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _names(text, split):
        file = str(text / split / f"{name}.tsv")
        yield name, {"tsv": file, "languages": ["en", _language(name)]}
