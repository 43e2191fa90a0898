"""What fairseq-preprocess wrote for a small text, and how fairseq encodes a few lines.

Recorded by `benchmarks/parity/fairseq_data.py --write-test-data` with fairseq 0.12.3.1.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

_RECORDED = Path(__file__).with_name("fairseq_data.safetensors")
_CHECKPOINTS = ("checkpoints", "convolutions", "denoising")
MASKED_MODELS = ("roberta", "roberta_untied")
LANGUAGE_MODELS = (
    "lm_adaptive_tied", "lm_adaptive_apart", "lm_lightconv_adaptive", "lm_fconv",
    "lm_fconv_adaptive", "lm_lstm", "lm_lstm_adaptive", "lm_characters",
)  # fmt: skip


def write_recorded(folder: Path) -> None:
    """Write the recorded files: folders `bpe`, `spm`, `cached` and `types`, and what made them."""
    for name, content in safetensors.numpy.load_file(_RECORDED).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.tobytes())


def write_recorded_checkpoints(folder: Path, archives: Sequence[str]) -> Path:
    """Write the recorded files and checkpoints; return the folder."""
    write_recorded(folder)
    write_checkpoints(folder, archives)
    return folder


def write_checkpoints(folder: Path, archives: Sequence[str] = _CHECKPOINTS) -> None:
    """Write checkpoints `NAME.pt` of fairseq and `NAME.logits.pt`, what it computed with them.

    Recorded by `benchmarks/parity/fairseq_import.py --record`, as is `pairs.json`, the ids;
    those of convolutions with `--variants lightweight dynamic fconv fconv_shared`, of denoising
    with `--variants bart`, `language_models` and `masked` with `--variants` and the names in
    `LANGUAGE_MODELS` and `MASKED_MODELS`. These read the sources of the pairs.
    """
    # a filter for archives of others, which Python 3.10 and 3.11.2 do not have
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    for name in archives:
        with tarfile.open(Path(__file__).with_name(f"fairseq_{name}.tar.xz")) as archive:
            archive.extractall(folder, **safely)


def dictionary_size(path: Path) -> int:
    """Return the number of symbols of a `dict.txt`, special ones included."""
    return 4 + len(path.read_bytes().splitlines())


def data_section(folder: Path, name: str, out: Path, **more: Any) -> dict[str, Any]:
    """Return the section `data` for one of the recorded folders, which reads it where it is."""
    sizes = {lang: dictionary_size(folder / name / f"dict.{lang}.txt") for lang in ("en", "de")}
    if name == "spm":
        own = {"dictionary": f"{folder}/spm/dict.en.txt", "sentencepiece": f"{folder}/spm.model"}
        vocab: dict[str, Any] = {"fairseq": own, "size": sizes["en"]}
    else:
        vocab = {
            side: {
                "size": sizes[lang],
                "fairseq": {
                    "dictionary": f"{folder}/{name}/dict.{lang}.txt",
                    "codes": f"{folder}/codes",
                },
            }
            for side, lang in (("source", "en"), ("target", "de"))
        }
    return {
        "source_lang": "en",
        "target_lang": "de",
        "dir": str(out),
        "source": {"name": "fairseq", "folders": f"{folder}/{name}"},
        "vocab": {"name": "fairseq_dict", **vocab},
        **more,
    }
