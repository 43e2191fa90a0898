"""fairseq_data.py: what fairseq itself does with a folder; run by the interpreter of its venv.

Commands: `make FOLDER` binarizes the text of the folder in several ways and encodes and decodes
lines; `read FOLDER` prints all sentences of the binarized data that it finds, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

LANGUAGES = ("en", "de")
_TYPES = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.uint16, np.uint32)
_UNSIGNED_64 = np.uint64


def make(folder: Path) -> None:
    """Binarize `text.en` and `text.de`, and record encodings.

    Writes `codes`, `bpe.*`, `spm.*`, and the folders `bpe` (dictionaries of its own), `spm` (one
    joint dictionary, alignments), `cached` (the old format) and `types` (a file of
    each token type), and `encoded.json`.
    """
    with open(folder / "text.both", "w", encoding="utf-8") as both:
        for language in LANGUAGES:
            both.write((folder / f"text.{language}").read_text(encoding="utf-8"))
    with open(folder / "text.both", encoding="utf-8") as text:
        with open(folder / "codes", "w", encoding="utf-8") as codes:
            learn_bpe(text, codes, 60)
    with open(folder / "codes", encoding="utf-8") as codes:
        bpe = BPE(codes)
    spm = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(folder / "spm.model")))
    for language in LANGUAGES:
        lines = (folder / f"text.{language}").read_text(encoding="utf-8").split("\n")[:-1]
        for name, encode in (("bpe", bpe.process_line), ("spm", spm.encode)):
            split = "".join(f"{encode(line)}\n" for line in lines)
            (folder / f"{name}.{language}").write_text(split, encoding="utf-8")
    preprocess(folder, "bpe", "--workers", "1")
    preprocess(folder, "spm", "--joined-dictionary", "--workers", "3", "--align-suffix", "align")
    dictionaries = [
        f"--{side}dict={folder}/bpe/dict.{lang}.txt"
        for side, lang in zip(("src", "tgt"), LANGUAGES, strict=True)
    ]
    preprocess(folder, "bpe", "--dataset-impl", "cached", *dictionaries, out="cached")
    write_types(folder / "types")
    encoded = {"bpe": [], "spm": [], "moses": []}
    probes = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    moses = MosesTokenizer(MosesTokenizerConfig(source_lang="en", target_lang="en"))
    ways = {
        "bpe": (Dictionary.load(f"{folder}/bpe/dict.en.txt"), bpe.process_line, "@@ ", None),
        "spm": (Dictionary.load(f"{folder}/spm/dict.en.txt"), spm.encode, "sentencepiece", None),
        "moses": (Dictionary.load(f"{folder}/bpe/dict.en.txt"), bpe.process_line, "@@ ", moses),
    }
    for name, (dictionary, encode, symbol, tokenizer) in ways.items():
        for line in probes:
            text = line if tokenizer is None else tokenizer.encode(line)
            ids = dictionary.encode_line(encode(text), add_if_not_exist=False, append_eos=False)
            back = dictionary.string(ids, bpe_symbol=symbol)
            back = back if tokenizer is None else tokenizer.decode(back)
            encoded[name].append({"ids": ids.tolist(), "text": back})
    (folder / "encoded.json").write_text(json.dumps(encoded), encoding="utf-8")


def preprocess(folder: Path, name: str, *options: str, out: str | None = None) -> None:
    """Run fairseq-preprocess on `NAME.en` and `NAME.de`."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "-s", "en", "-t", "de"]
    command += [f"--trainpref={folder / name}", f"--validpref={folder / name}"]
    command += [f"--destdir={folder / (out or name)}", *options]
    subprocess.run(command, check=True, capture_output=True)


def write_types(folder: Path) -> None:
    """Write the same two sentences with each type of a token that fairseq has."""
    folder.mkdir()
    for kind in (*_TYPES, _UNSIGNED_64):
        prefix = str(folder / np.dtype(kind).name)
        builder = indexed_dataset.MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=kind)
        builder.add_item(torch.tensor([5, 9, 2]))
        builder.add_item(torch.tensor([100, 2]))
        builder.finalize(f"{prefix}.idx")


def read(folder: Path) -> dict[str, list[list[int]]]:
    """Return all sentences of each binarized file that fairseq can load."""
    found = {}
    for path in sorted(folder.glob("*.idx")):
        prefix = str(path.with_suffix(""))
        language = prefix.rsplit(".", 1)[1]
        words = folder / f"dict.{language}.txt"
        dictionary = Dictionary.load(str(words)) if words.exists() else None
        impl = indexed_dataset.infer_dataset_impl(prefix)
        impl = "lazy" if impl == "cached" else impl  # the same files, without fetching ahead
        data = data_utils.load_indexed_dataset(prefix, dictionary, dataset_impl=impl)
        found[path.stem] = [data[i].tolist() for i in range(len(data))]
    return found


def seconds_to_read(folder: Path, count: int) -> float:
    """Return the seconds that fairseq takes to read all pairs in random order."""
    sides = [
        data_utils.load_indexed_dataset(str(folder / f"train.en-de.{language}"), None)
        for language in LANGUAGES
    ]
    order = np.random.default_rng(2).permutation(count)
    started = time.perf_counter()
    for row in order:
        for side in sides:
            side[int(row)]
    return time.perf_counter() - started


if __name__ == "__main__":
    arguments = Namespace(what=sys.argv[1], folder=Path(sys.argv[2]))
    if arguments.what == "make":
        make(arguments.folder)
    elif arguments.what == "time":
        print(seconds_to_read(arguments.folder, int(sys.argv[3])))
    else:
        print(json.dumps(read(arguments.folder)))
