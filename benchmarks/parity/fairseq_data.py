"""Data in fairseq's format, compared with fairseq itself in both directions.

fairseq binarizes a small text; ds_seq reads and converts it, and writes it back; fairseq reads
that. Files are compared byte for byte, encodings id for id. `--write-test-data` records fairseq's
files and encodings, which the unit tests compare with without fairseq.

    python benchmarks/parity/fairseq_data.py [--venv DIR] [--pairs N] [--write-test-data]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_venv import make_fairseq_venv
from parity.fairseq_speed import figures

from ds_seq.cli import main as ds_seq
from ds_seq.config.load import read_experiment
from ds_seq.data.fairseq import FairseqSource
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.text.build import load_tokenizers
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import toy_pairs

FILE = Path(__file__).resolve().parents[2] / "tests" / "data" / "fairseq_data.safetensors"
SIDE = Path(__file__).with_name("fairseq_data_side.py")
PAIRS = 24
_ODD = (
    ("naïve café \u00a0 no-break", "straße\u3000weit"),
    ("a @@ b@@ c", "x @-@ y"),
    ("don't, won't -- 50% & <b>", "„ja“, sagt’s"),
    ("unseen ☺ Ж sign", "漢字 kommt"),
)
_PROBES = ("the man sees a house", "zebra ☺ don't stop -- 5 & 6", "", "a\u00a0b")  # clean lines
_TYPES = ("uint8", "int8", "int16", "int32", "int64", "float64", "uint16", "uint32", "uint64")


def main(argv: Sequence[str]) -> int:
    """Compare, and return 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path.home() / ".cache" / "ds_seq" / "fairseq-venv"
    parser.add_argument("--venv", type=Path, default=default, help="environment of fairseq")
    parser.add_argument("--write-test-data", action="store_true", help="write the tests' reference")
    parser.add_argument(
        "--pairs", type=int, default=0, help="also measure speed with this number of random pairs"
    )
    arguments = parser.parse_args(argv)
    python = make_fairseq_venv(arguments.venv)
    pip = [str(python), "-m", "pip", "install", "-q", "subword-nmt", "sacremoses"]
    subprocess.run(pip, check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder)
        subprocess.run([str(python), str(SIDE), "make", name], check=True)
        lines = list(compare(folder, python))
        if arguments.write_test_data:
            record(folder)
        if arguments.pairs:
            for line in figures(folder / "speed", python, SIDE, arguments.pairs):
                print(line)
    for line, same in lines:
        print(f"{'same' if same else 'DIFFERENT':<10} {line}")
    return 0 if all(same for _, same in lines) else 1


def write_text(folder: Path) -> None:
    """Write the text of both languages, alignments, a SentencePiece model, and lines to encode."""
    pairs = [*toy_pairs(PAIRS, seed=5), *_ODD]
    for side, language in enumerate(("en", "de")):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / f"text.{language}").write_text(text, encoding="utf-8")
    links = [
        " ".join(f"{n}-{n}" for n in range(min(len(a.split()), len(b.split())))) for a, b in pairs
    ]
    (folder / "spm.align").write_text("".join(f"{line}\n" for line in links))
    model = SentencePieceTokenizer.train(
        [folder / "text.en", folder / "text.de"],
        size=110,
        model_type="bpe",
        character_coverage=1.0,
        input_sentence_size=0,
        normalization="identity",
        byte_fallback=False,
    )
    model.save(folder / "spm.model")
    (folder / "probes.json").write_text(json.dumps(_PROBES), encoding="utf-8")


def experiment(folder: Path, name: str) -> dict[str, object]:
    """Return an experiment on one of the folders that fairseq made."""
    size = {
        language: 4 + len((folder / name / f"dict.{language}.txt").read_bytes().splitlines())
        for language in ("en", "de")
    }
    if name == "spm":
        files = {"dictionary": f"{folder}/spm/dict.en.txt", "sentencepiece": f"{folder}/spm.model"}
        vocab: dict[str, object] = {"name": "fairseq_dict", "fairseq": files, "size": size["en"]}
    else:
        sides = {
            side: {
                "size": size[language],
                "fairseq": {
                    "dictionary": f"{folder}/{name}/dict.{language}.txt",
                    "codes": f"{folder}/codes",
                },
            }
            for side, language in (("source", "en"), ("target", "de"))
        }
        vocab = {"name": "fairseq_dict", **sides}
    data = {"source_lang": "en", "target_lang": "de", "dir": f"{folder}/ours-{name}"}
    section = {"share_embeddings": "all" if name == "spm" else "decoder"}
    checks = {"metrics": [], "best": "loss"}
    return {"name": "x", "data": {**data, "vocab": vocab}, "model": section, "validation": checks}


def compare(folder: Path, python: Path) -> Iterator[tuple[str, bool]]:
    """Yield what was compared, and whether it is the same."""
    for name in ("bpe", "spm", "cached"):
        config = experiment(folder, name)
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps(config))
        theirs = fairseq_reads(folder / name, python)
        assert ds_seq(["convert-data", str(file), "--from-fairseq", f"{folder}/{name}"]) == 0
        data = read_experiment(config).data
        tokenizers = load_tokenizers(data, data.dir)
        reader = FairseqSource([folder / name], "train", ("en", "de"), tokenizers)
        for side, language in enumerate(("en", "de")):
            rows = np.arange(len(reader))
            tokens, lengths = reader.gather(rows)[side]
            ours = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
            yield f"{name}: sentences read, {language}", ours == theirs[f"train.en-de.{language}"]
        back = folder / f"back-{name}"
        assert ds_seq(["convert-data", str(file), "--to-fairseq", str(back)]) == 0
        again = fairseq_reads(back, python)
        for key, sentences in again.items():
            yield f"{name}: fairseq reads our {key}", sentences == theirs[key]
        # what fairseq writes today is the mmap format, also of sentences it had in the old one
        expected = folder / ("bpe" if name == "cached" else name)
        for path in sorted(back.iterdir()):
            if path.suffix in (".bin", ".idx", ".txt"):
                same = path.read_bytes() == (expected / path.name).read_bytes()
                yield f"{name}: bytes of {path.name}", same
    for kind in _TYPES:
        tokens, lengths = IndexedFile(folder / "types" / kind).gather(np.array([1, 0]))
        yield f"type {kind}", (tokens.tolist(), lengths.tolist()) == ([100, 2, 5, 9, 2], [2, 3])
    yield from compare_encodings(folder)


def compare_encodings(folder: Path) -> Iterator[tuple[str, bool]]:
    """Compare the ids of lines, and the text of the ids."""
    encoded = json.loads((folder / "encoded.json").read_text(encoding="utf-8"))
    for name, answers in encoded.items():
        config = experiment(folder, "bpe" if name == "moses" else name)
        data = read_experiment(config).data
        if name == "moses":
            changed = {"data.vocab.source.fairseq.moses": "true", "data.dir": f"{folder}/moses"}
            data = read_experiment(config, [f"{k}={v}" for k, v in changed.items()]).data
            file = folder / "moses.yaml"
            file.write_text(json.dumps({**config, "data": data.model_dump()}))
            assert ds_seq(["convert-data", str(file), "--from-fairseq", f"{folder}/bpe"]) == 0
        tokenizer = load_tokenizers(data, data.dir).source
        for line, answer in zip(_PROBES, answers, strict=True):
            yield f"{name}: ids of {line!r}", tokenizer.encode(line) == answer["ids"]
            yield f"{name}: text of {line!r}", tokenizer.decode(answer["ids"]) == answer["text"]


def fairseq_reads(folder: Path, python: Path) -> dict[str, list[list[int]]]:
    """Return the sentences that fairseq reads from a folder."""
    command = [str(python), str(SIDE), "read", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def record(folder: Path) -> None:
    """Write all files of fairseq and its encodings for the unit tests."""
    kept = ("bpe/", "spm/", "cached/", "types/")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: str(path.relative_to(folder)) for path in paths}
    inputs = ("codes", "spm.model", "spm.align", "text.en", "text.de", "encoded.json")
    tensors = {
        name: torch.from_numpy(np.frombuffer(path.read_bytes(), np.uint8).copy())
        for path, name in names.items()
        if (name.startswith(kept) or name in (*inputs, "probes.json"))
        and path.suffix != ".log"
        and "valid." not in name
    }
    save_file(tensors, FILE)
    print(f"{FILE.name}: {len(tensors)} files, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
