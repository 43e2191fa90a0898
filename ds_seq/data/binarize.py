"""Convert text into shards of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds_seq.data.clean import check_no_empty_line
from ds_seq.data.manifest import CorpusRecord, Manifest
from ds_seq.data.origin import Origin
from ds_seq.data.parallel import cleaning_up, map_in_order
from ds_seq.data.progress import Report, ignore
from ds_seq.data.shards import ShardWriter, TokenBlock, manifest_path
from ds_seq.errors import UserError
from ds_seq.text.lines import LineBlock, PairPath, decode_lines, read_blocks, text_fingerprint
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_BLOCK_LINES = 10_000


class BinarizeReport(NamedTuple):
    """Counts of written tokens, and of unknown tokens on each side."""

    manifest: Manifest
    src_unknown: int
    tgt_unknown: int


def binarize(  # noqa: PLR0913  (a builder: input, output and options)
    tokenizers: Tokenizers,
    source: str | Path,
    target: str | Path,
    folder: str | Path,
    split: str,
    *,
    languages: tuple[str, str],
    shard_size: int,
    origin: Origin = Origin(),  # noqa: B008 - a constant
    corpora: Sequence[CorpusRecord] = (),
    workers: int = 1,
    progress: Report = ignore,
) -> BinarizeReport:
    """Write the shards of one split.

    Pair n of the shards is line n of the text. The bytes do not depend on the number of workers,
    which only encode; a single process writes.

    Args:
        tokenizers: tokenizers of the text; their fingerprint is stored in the manifest.
        source: source text, one sentence per line.
        target: target text, with the same number of lines.
        folder: folder of the shards; see `ds_seq.data.shards`.
        split: `train`, `valid`, `test` or another name.
        languages: source and target language, for the manifest.
        shard_size: number of pairs per shard.
        origin: what the text and the vocabulary were made from, for the manifest.
        corpora: which pairs are of which corpus, for the manifest; empty: of one without a name.
        workers: number of processes.
        progress: called with the number of pairs of each finished block.

    Raises:
        UserError: the sides differ in length, or the text is empty or contains an empty line or
            invalid UTF-8. Existing shards of the split are then unchanged.
    """
    path = PairPath(Path(source), Path(target))
    blocks = read_blocks([path], _BLOCK_LINES)
    unknown = [0, 0]
    writer = ShardWriter(
        folder,
        split,
        vocab_hash=tokenizers.fingerprint,
        vocab_size=tokenizers.size,
        languages=languages,
        shard_size=shard_size,
        inputs=[text_fingerprint(side) for side in path],
        origin=origin,
        corpora=corpora,
    )
    with cleaning_up(), writer:
        for pair in map_in_order(_encode_block, tokenizers, blocks, workers):
            writer.add_block(*pair)
            for side, (block, tokenizer) in enumerate(zip(pair, tokenizers, strict=True)):
                unknown[side] += int((block.tokens == tokenizer.symbols.unk).sum())
            progress(len(pair[0].lengths))
    return BinarizeReport(Manifest.read(manifest_path(folder, split)), *unknown)


def is_current(
    folder: str | Path, split: str, tokenizers: Tokenizers, text: PairPath, shard_size: int
) -> bool:
    """Return whether the existing shards equal those that `binarize` would write."""
    path = manifest_path(folder, split)
    if not path.exists():
        return False
    try:
        manifest = Manifest.read(path)
        manifest.check_files(path.parent, full=True)
    except UserError:
        return False
    return (
        manifest.vocab_hash == tokenizers.fingerprint
        and manifest.inputs == tuple(text_fingerprint(side) for side in text)
        and manifest.shards[0].pairs == min(shard_size, manifest.pairs)
    )


def _encode_block(tokenizers: Tokenizers, block: LineBlock) -> tuple[TokenBlock, TokenBlock]:
    source, target = (
        [tokenizer.normalize(line) for line in side]
        for tokenizer, side in zip(tokenizers, decode_lines(block), strict=True)
    )
    check_no_empty_line(block, source, target)
    return _encode(tokenizers.source, source), _encode(tokenizers.target, target)


def _encode(tokenizer: Tokenizer, lines: Sequence[str]) -> TokenBlock:
    sentences = tokenizer.encode_lines(lines)
    for ids in sentences:
        ids.append(tokenizer.symbols.eos)
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    tokens = np.fromiter(chain.from_iterable(sentences), np.uint32, int(lengths.sum()))
    return TokenBlock(tokens, lengths)
