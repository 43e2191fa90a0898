"""`ds-seq export`: one weights file that can be used on any machine, without DeepSpeed.

All experts of a layer are stacked in one tensor. Config and vocabulary are stored in the header of
the file or, if the output is a folder, next to it. `--format ctranslate2` writes a folder for the
CTranslate2 runtime instead.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from torch import Tensor, nn

from ds_seq import files
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.names import ExportFormat
from ds_seq.runs.card import StoredRun
from ds_seq.runs.fewer_layers import KeptLayers
from ds_seq.runs.formats.ctranslate2.converter import CTranslate2Converter
from ds_seq.runs.formats.ds_seq import (
    CONFIG_FILE,
    CONFIG_HASH_KEY,
    CONFIG_KEY,
    EXPORT_FILE,
    EXPORT_SUFFIX,
    vocab_keys,
)
from ds_seq.runs.formats.huggingface.exporting import HuggingFaceExporter
from ds_seq.runs.formats.huggingface.source import LINK_FILE, link_to
from ds_seq.runs.model_card import CARD_FILE, model_card
from ds_seq.runs.open import DTYPES, ModelParts, load_run, open_run
from ds_seq.runs.parts import write_part
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers
from ds_seq.weights.fill import model_tensors
from ds_seq.weights.meta import FORMAT_VERSION, VOCAB_HASH_KEY
from ds_seq.weights.packed import PACKED_KEY, packed_tensors
from ds_seq.weights.source import FORMAT_KEY, save_tensors


def export(
    run: Path,
    out: Path,
    checkpoint: str,
    dtype: str = "fp32",
    form: ExportFormat = "safetensors",
    merged: bool = False,
    only: Sequence[str] = (),
    layers: KeptLayers | None = None,
) -> Path:
    """Write config, vocabulary and all weights (experts stacked) of `run` to `out`.

    Args:
        run: a run folder, or an earlier export.
        out: a new file if its name ends in `.safetensors`, else a new folder.
        checkpoint: checkpoint of the run to export.
        dtype: `fp32`, `bf16` or `fp16`.
        form: `safetensors` for ds_seq; `bitnet`, too, with ternary or binary weights packed, see
            `ds_seq.weights.packed`; or `ctranslate2` for a folder for that runtime, see
            `ds_seq.runs.formats.ctranslate2`; or `hf` for one that transformers opens, see
            `ds_seq.runs.formats.huggingface`.
        merged: whether to merge low-rank changes into the weights, not for `bitnet`.
        only: parts to write instead of the whole model, see `ds_seq.runs.parts.write_part`.
        layers: the layers to write, for `safetensors`; None: all.

    Returns:
        Path of the weights file.

    Raises:
        UserError: `out` exists, or `run` is not usable.
    """
    check_new(out)
    if layers and (form != "safetensors" or only):
        raise UserError(
            "layers to keep: go with --format safetensors only, and without --only; export that "
            "first, and then the export"
        )
    if form in ("ctranslate2", "hf"):
        stored = open_run(run, checkpoint)
        config = stored.require_experiment()
        config = _without_lora(run, config) if merged else config
        folder = FolderExport(run, stored, config, form, out)
        # rounded once, by the converter
        loaded = load_run(run, checkpoint, dtype=DTYPES["fp32"], merged=merged)
        return folder.write(loaded.model, dtype)
    if form == "bitnet":
        return _export_packed(run, out, checkpoint, dtype)
    if only:
        return _export_part(run, out, checkpoint, only)
    loaded = load_run(
        run, checkpoint, dtype=DTYPES[dtype], merged=merged, parts=ModelParts(layers=layers)
    )
    config = loaded.require_experiment()
    config = _without_lora(run, config) if merged else config
    return write_export(loaded.model, config, loaded.tokenizers, out)


def _without_lora(run: Path, config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment of a model whose low-rank changes are merged into its weights."""
    if config.model.lora is None:
        raise UserError(f"--merge-lora: {run} has no low-rank changes; leave it out")
    model = config.model.model_copy(update={"lora": None})
    return config.model_copy(update={"model": model})


def _export_part(run: Path, out: Path, checkpoint: str, only: Sequence[str]) -> Path:
    if out.suffix != EXPORT_SUFFIX:
        raise UserError(f"--out {out}: --only writes a file; let its name end in {EXPORT_SUFFIX}")
    loaded = load_run(run, checkpoint, dtype=DTYPES["fp32"])
    with _new_path(out) as path:
        write_part(loaded, only, path)
    return out


def _export_packed(run: Path, out: Path, checkpoint: str, dtype: str) -> Path:
    stored = open_run(run, checkpoint)
    config = stored.require_experiment()
    if not isinstance(config.model, TransformerConfig) or config.model.linear.packed_bits is None:
        raise UserError(
            f"--format bitnet: {run} has no weights of one or two bits to pack; train it with "
            "model.linear=bitnet, or use --format safetensors"
        )
    loaded = load_run(run, checkpoint, dtype=DTYPES["fp32"])  # rounded from full precision
    tensors, entries = packed_tensors(loaded.model, DTYPES[dtype])
    return _write(tensors, config, loaded.tokenizers, out, {PACKED_KEY: entries})


class FolderExport:
    """Writes a model as a folder for another program.

    Args:
        run: run folder, or export, of the model.
        stored: the model.
        config: experiment of the model that is written, which may be made of the stored one.
        form: `ctranslate2` or `hf`.
        out: the new folder.

    Raises:
        UserError: `out` is the name of a file, or the program does not have such a model; known
            before the weights are read.
    """

    def __init__(
        self, run: Path, stored: StoredRun, config: ExperimentConfig, form: ExportFormat, out: Path
    ) -> None:
        if config.experts:
            raise UserError(
                f"--format {form}: {run} is a mixture (criterion hard_em), whose experts are start "
                "symbols; use --format safetensors"
            )
        if out.suffix == EXPORT_SUFFIX:
            raise UserError(
                f"--out {out}: --format {form} makes a folder; name it without {EXPORT_SUFFIX}"
            )
        self._run, self._stored, self._form, self._out = run, stored, form, out
        self._converter = (
            CTranslate2Converter(config)
            if form == "ctranslate2"
            else HuggingFaceExporter(config, stored.tokenizers)
        )

    def write(self, model: nn.Module, dtype: str, changes: Sequence[str] = ()) -> Path:
        """Write the folder, complete or not at all.

        Args:
            model: the whole model, in float32 on the CPU.
            dtype: `fp32`, `bf16` or `fp16`.
            changes: how the model differs from the stored one, for the model card.

        Returns:
            Path of the weights file.

        Raises:
            UserError: the folder exists, cannot be written, or computes something else.
        """
        with _new_path(self._out) as folder:
            folder.mkdir()
            check = self._converter.save(model, self._stored.tokenizers, folder, dtype)
            count = sum(parameter.numel() for parameter in model.parameters())
            card = model_card(self._run, self._stored, self._form, check, count, changes)
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            files.write_sums(folder)
        return self._out / self._converter.weights_file


def check_new(out: Path) -> None:
    """Check that an output path does not exist yet.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name a new file or folder")


def write_export(
    model: nn.Module,
    config: ExperimentConfig,
    tokenizers: Tokenizers,
    out: Path,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a whole model to the new file or folder `out`; see `export`.

    The output is written under another name and then renamed, so that it is complete or absent.

    Args:
        model: the whole model, on one rank.
        config: experiment that describes the model.
        tokenizers: tokenizers of the model.
        out: see `export`.
        notes: additional entries of the header of the weights file, by key.

    Returns:
        Path of the weights file.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    tensors = {name: value.detach().contiguous() for name, value in model_tensors(model)}
    return _write(tensors, config, tokenizers, out, notes or {})


def write_link(config: ExperimentConfig, tokenizers: Tokenizers, folder: Path, out: Path) -> Path:
    """Write a new folder `out` like an export, whose weights stay in a Hugging Face folder.

    Args:
        config: experiment that describes the model.
        tokenizers: tokenizers of the model.
        folder: the Hugging Face folder.
        out: the new folder.

    Returns:
        Path of the file that names the folder.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    with _new_path(out) as path:
        path.mkdir()
        (path / CONFIG_FILE).write_text(dump(config), encoding="utf-8")
        (path / LINK_FILE).write_text(link_to(folder), encoding="utf-8")
        save_tokenizers(tokenizers, path, config.data.vocab.joint)
    return out / LINK_FILE


def _write(
    tensors: Mapping[str, Tensor],
    config: ExperimentConfig,
    tokenizers: Tokenizers,
    out: Path,
    notes: Mapping[str, str],
) -> Path:
    with _new_path(out) as path:
        if out.suffix == EXPORT_SUFFIX:
            keys = vocab_keys(config.data.vocab.joint)
            sides = tokenizers[-len(keys) :]
            header = {CONFIG_KEY: dump(config)} | {
                key: base64.b64encode(side.to_bytes()).decode("ascii")
                for key, side in zip(keys, sides, strict=True)
            }
            _save(tensors, path, {**notes, **header})
        else:
            path.mkdir()
            (path / CONFIG_FILE).write_text(dump(config), encoding="utf-8")
            header = {
                "ds_seq": config.name,
                VOCAB_HASH_KEY: tokenizers.fingerprint,
                CONFIG_HASH_KEY: files.fingerprint(path / CONFIG_FILE),
            }
            _save(tensors, path / EXPORT_FILE, {**notes, **header})
            save_tokenizers(tokenizers, path, config.data.vocab.joint)
    return out if out.suffix == EXPORT_SUFFIX else out / EXPORT_FILE


@contextmanager
def _new_path(out: Path) -> Iterator[Path]:
    """Like `files.replacing` for a new path; removes the leftovers of killed exports first."""
    with files.Lock(files.lock_of(out), out, "stop that process first, or give another name"):
        check_new(out)
        files.remove_leftovers(out.parent, escape(out.name))
        with files.replacing(out) as temporary:
            yield temporary


def _save(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    save_tensors(tensors, path, {**header, FORMAT_KEY: str(FORMAT_VERSION)})
