"""``ds-seq export``: one folder with one weights file, for use on any machine, without
DeepSpeed."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from ds_seq.errors import UserError
from ds_seq.interop.run_folder import CONFIG_FILE, DTYPES, EXPORT_FILE, VOCAB_FILE, load_run


def export(run: Path, out: Path, checkpoint: str = "best", dtype: str = "fp32") -> Path:
    """Write config, vocabulary and all weights (experts stacked) of ``run`` to the folder ``out``.

    Args:
        run: a run folder.
        out: a new folder.
        checkpoint: which state of the run.
        dtype: ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        The weights file.

    Raises:
        UserError: ``out`` exists, or ``run`` is not a usable run folder.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    loaded = load_run(run, checkpoint, dtype=DTYPES[dtype])
    temporary = out.with_name(out.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        tensors = {name: p.detach().contiguous() for name, p in loaded.model.named_parameters()}
        save_file(tensors, str(temporary / EXPORT_FILE), metadata={"ds_seq": loaded.config.name})
        for name in (CONFIG_FILE, VOCAB_FILE):
            shutil.copyfile(run / name, temporary / name)
        os.replace(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{out}: cannot write ({error.strerror})") from error
    return out / EXPORT_FILE


def main(argv: Sequence[str]) -> int:
    """Command line of ``ds-seq export``."""
    parser = argparse.ArgumentParser(
        prog="ds-seq export",
        description="Write a trained model as one folder: config.yaml, vocab.model and "
        "model.safetensors. `ds-seq generate FOLDER` takes it like a run folder.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.add_argument("--checkpoint", default="best", help="best, last, a name or a path")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision on disk")
    options = parser.parse_args(argv)
    path = export(options.run, options.out, options.checkpoint, options.dtype)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0
