"""Train a SentencePiece model on text.

A large text is read and learned from in a process of its own: SentencePiece and the sample of lines
take gigabytes, which Python would not give back, and SentencePiece's log shows how far it is.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import sentencepiece as spm

import ds_seq
from ds_seq.errors import UserError
from ds_seq.names import IDENTITY
from ds_seq.text.lines import decode_line, open_bytes
from ds_seq.text.normalize import Normalizer

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""fairseq's order of special symbols."""

LARGE_TEXT = 4_000_000  # bytes; training takes seconds, more than starting a process
_MOST_BYTES = 4192  # SentencePiece's default of `max_sentence_length`
_RESERVED = "\u2585"  # SentencePiece's mark of unknown text
_REPORT_LINES = 1_000_000
_REPORT_SECONDS = 10.0
_NO_NEWS = b"WARNING: All log messages before absl::InitializeLog"  # of its library for logs
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Trained(NamedTuple):
    """The result of a training: a model, or an error."""

    model: bytes
    num_skipped: int
    """Number of lines that SentencePiece cannot learn from."""
    first_skipped: str
    """File and number of the first of them."""
    error: str | None


def train_model(  # noqa: PLR0913  (a builder: one argument per trainer option)
    files: Sequence[str | Path],
    size: int,
    normalizer: Normalizer,
    model_type: str,
    character_coverage: float,
    input_sentence_size: int,
    normalization: str,
    byte_fallback: bool,
    seed: int = 1,
    user_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    num_threads: int = 4,
) -> bytes:
    """Train one SentencePiece model on all files together, and return the bytes of its file.

    Args:
        files: UTF-8 text files, one sentence per line; normally both sides of the training text.
        size: vocabulary size, the four special symbols included.
        normalizer: applied to the text first.
        model_type: `unigram` or `bpe`.
        character_coverage: fraction of character occurrences covered by pieces; 0.9995 for
            scripts with thousands of characters.
        input_sentence_size: number of sentences sampled at random for training; 0 means all.
        normalization: rule by which the model rewrites text: a name that SentencePiece knows, or
            a file `NAME.tsv`; `identity` leaves text as it is.
        byte_fallback: whether characters without a piece become UTF-8 bytes, 256 of the pieces.
        seed: seed of this sample.
        user_symbols: pieces that are never split, for example language tags.
        control_symbols: pieces that no text contains, such as `<mask>`.
        num_threads: number of trainer threads, on which sums and so the result depend a little.

    Raises:
        UserError: there is no text, the rules cannot be read, or `size` does not suit the text.
    """
    paths = [Path(path) for path in files]
    options = {
        "vocab_size": size,
        "model_type": model_type,
        "character_coverage": character_coverage,
        "byte_fallback": byte_fallback,
        "user_defined_symbols": list(user_symbols),
        "control_symbols": list(control_symbols),
        "num_threads": num_threads,
        # other rules replace special spaces, which leaves runs of them
        "remove_extra_whitespaces": normalization != IDENTITY,
        **_rule(normalization),
    }
    sentences = _Sentences(paths, normalizer, input_sentence_size, seed)
    if sum(path.stat().st_size for path in paths if path.exists()) < LARGE_TEXT:
        trained = _train(sentences, options)
    else:
        if model_type == "unigram" and input_sentence_size == 0:
            options["train_extremely_large_corpus"] = True
        trained = _train_apart(sentences, options)
    if trained.error is not None:
        raise UserError(trained.error)
    _warn_of_skipped(trained)
    return trained.model


def _warn_of_skipped(trained: _Trained) -> None:
    """Say how many lines SentencePiece could not learn from, which were left out."""
    if trained.num_skipped:
        print(
            f"ds-seq: warning: {trained.num_skipped:,} line(s) took no part in training the "
            f"vocabulary, because they are longer than {_MOST_BYTES:,} bytes or contain "
            f"{_RESERVED} (U+2585), which SentencePiece cannot learn from; the first is "
            f"{trained.first_skipped}",
            file=sys.stderr,
        )


def _rule(normalization: str) -> dict[str, str]:
    if not normalization.endswith(".tsv"):
        return {"normalization_rule_name": normalization}
    if not Path(normalization).is_file():
        raise UserError(f"data.vocab.normalization: {normalization}: no such file")
    return {"normalization_rule_tsv": normalization}


class _Sentences:
    """Iterable over the training text: all of it, or a uniform sample that depends on a seed.

    SentencePiece's own sampling always uses the same seed. Its bindings also lose the type of an
    exception raised while reading, so this exception is stored in `error`.
    """

    def __init__(
        self, files: Sequence[Path], normalizer: Normalizer, sample_size: int, seed: int
    ) -> None:
        self.error: UserError | None = None
        self.num_skipped, self.first_skipped = 0, ""
        self.report: Callable[[str], object] | None = None
        self._files = files
        self._normalizer = normalizer
        self._sample_size = sample_size
        self._seed = seed

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._sample() if self._sample_size else self._read()
        except UserError as error:
            self.error = error
            raise

    def _read(self) -> Iterator[str]:
        total, empty = 0, True
        for path in self._files:
            with open_bytes(path) as file:
                for number, line in enumerate(file, 1):
                    total += 1
                    if self.report is not None and total % _REPORT_LINES == 0:
                        self.report(f"{total:,} lines read")
                    text = self._normalizer(decode_line(line, path, number))
                    if len(text.encode()) > _MOST_BYTES or _RESERVED in text:
                        self.num_skipped += 1
                        self.first_skipped = self.first_skipped or f"{path}: line {number}"
                    elif text:
                        yield text
                        empty = False
        if empty:
            names = ", ".join(str(path) for path in self._files) or "an empty list"
            why = f" (all lines are longer than {_MOST_BYTES:,} bytes)" if self.num_skipped else ""
            raise UserError(f"no text to train a vocabulary on in {names}{why}")

    def _sample(self) -> list[str]:
        """Draw a sample in one pass by reservoir sampling (algorithm R of Vitter, 1985)."""
        draw = random.Random(self._seed)
        sample: list[str] = []
        for seen, text in enumerate(self._read()):
            if seen < self._sample_size:
                sample.append(text)
            elif (slot := draw.randint(0, seen)) < self._sample_size:
                sample[slot] = text
        return sample


def _train(sentences: _Sentences, options: Mapping[str, Any], log_level: int = 2) -> _Trained:
    """Train in this process."""
    model = io.BytesIO()
    error = None
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            max_sentence_length=_MOST_BYTES,
            minloglevel=log_level,
            **options,
        )
    except UserError as failure:
        error = str(failure)
    except (RuntimeError, OSError) as failure:
        error = str(sentences.error or _explain(str(failure), options["vocab_size"]))
    return _Trained(model.getvalue(), sentences.num_skipped, sentences.first_skipped, error)


def _train_apart(sentences: _Sentences, options: Mapping[str, Any]) -> _Trained:
    """Train in a process of its own, and show how far it is."""
    code = f"from {__name__} import _child; _child({os.getpid()})"
    package = str(Path(ds_seq.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    last: list[str] = []
    reporter = threading.Thread(target=_report, args=(child.stderr, last), daemon=True)
    reporter.start()
    try:
        with suppress(BrokenPipeError), child.stdin as request:
            pickle.dump((sentences, options), request)
        answer = child.stdout.read()
        child.wait()
    finally:
        child.kill()
        child.wait()
        reporter.join()
        child.stdout.close()
        child.stderr.close()
    if not answer:
        why = "it ran out of memory" if child.returncode == -signal.SIGKILL else " ".join(last)
        raise UserError(
            f"training the vocabulary was stopped ({why or f'exit code {child.returncode}'}); a "
            "lower data.vocab.input_sentence_size needs less memory"
        )
    trained: _Trained = pickle.loads(answer)  # noqa: S301 - from our own child
    return trained


def _child(parent: int) -> None:
    """Train what standard input says; write the result to standard output, the log to stderr."""
    # however the parent ends, this process ends, too
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    sentences, options = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    sentences.report = lambda text: print(text, file=sys.stderr, flush=True)
    sys.stdout.buffer.write(pickle.dumps(_train(sentences, options, log_level=0)))


def _report(log: IO[bytes], last: list[str]) -> None:
    """Print a line of a log every few seconds; keep the last one in `last`."""
    started = printed = time.monotonic()
    for line in log:
        if line.startswith(_NO_NEWS):
            continue
        # SentencePiece begins with the time and the place in its source: `file.cc(12) LOG(INFO) `
        text = re.sub(r"^.*?\.cc[(:]\d+[)\]](?: LOG\(\w+\))? ?", "", line.decode(errors="replace"))
        last[:] = [text.strip()]
        now = time.monotonic()
        if now - printed >= _REPORT_SECONDS:
            printed = now
            print(f"vocabulary: {now - started:.0f} s: {last[0]}", file=sys.stderr, flush=True)


def _explain(message: str, size: int) -> str:
    """Turn a message of the trainer into one that names the key to change."""
    if bound := re.search(r"value <= (\d+)", message):
        return (
            f"the training text is too small for a vocabulary of {size:,} pieces; "
            f"set data.vocab.size to at most {int(bound[1]):,}"
        )
    if bound := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{size:,} pieces are too few for the characters of the training text; "
            f"set data.vocab.size to more than {int(bound[1]):,} or lower "
            "data.vocab.character_coverage"
        )
    return f"SentencePiece could not train a vocabulary of {size:,} pieces: {message}"
