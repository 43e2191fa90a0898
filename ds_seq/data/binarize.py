"""Convert text into shards of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ds_seq import files
from ds_seq.data import parts
from ds_seq.data.manifest import CorpusRecord, Manifest
from ds_seq.data.origin import Origin
from ds_seq.data.parallel import cleaning_up, map_in_order
from ds_seq.data.parts import BadText, Part, PartEncoder
from ds_seq.data.progress import Report, ignore
from ds_seq.data.shard_files import manifest_path
from ds_seq.data.shard_writer import ShardWriter, cut
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath, text_fingerprint
from ds_seq.text.plan import TextPlan, plan_text
from ds_seq.text.tokenizer import Tokenizers

_PLAN = "plan.json"


class CorpusText(NamedTuple):
    """The clean text of a corpus of a split."""

    name: str
    """Its name in `data.corpora`."""
    text: PairPath
    languages: tuple[str, str]
    """Source and target language."""


class BinarizeReport(NamedTuple):
    """Counts of written tokens, and of unknown tokens on each side."""

    manifest: Manifest
    src_unknown: int
    tgt_unknown: int
    """0 in text of one side."""


def binarize(  # noqa: PLR0913  (a builder: input, output and options)
    tokenizers: Tokenizers,
    source: str | Path,
    target: str | Path | None,
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
    """Write the shards of one split that is one text.

    Pair n of the shards is line n of the text. See `binarize_corpora`.

    Args:
        tokenizers: tokenizers of the text; their fingerprint is stored in the manifest.
        source: source text, one sentence per line.
        target: target text, with the same number of lines; None for text of one side.
        folder: folder of the shards; see `ds_seq.data.shards`.
        split: `train`, `valid`, `test` or another name.
        languages: source and target language, for the manifest.
        shard_size: number of pairs per shard.
        origin: what the text and the vocabulary were made from, for the manifest.
        corpora: which pairs are of which corpus, for the manifest; empty: of one without a name.
        workers: number of processes.
        progress: called with the number of pairs of each finished part.
    """
    sides = [Path(side) for side in (source, target) if side is not None]
    text = CorpusText("", PairPath.of(*sides), languages)
    return _binarize(
        tokenizers,
        [text],
        folder,
        split,
        languages=languages,
        shard_size=shard_size,
        origin=origin,
        corpora=corpora,
        workers=workers,
        progress=progress,
    )


def binarize_corpora(  # noqa: PLR0913  (a builder: input, output and options)
    tokenizers: Tokenizers,
    corpora: Sequence[CorpusText],
    folder: str | Path,
    split: str,
    *,
    languages: tuple[str, str],
    shard_size: int,
    origin: Origin = Origin(),  # noqa: B008 - a constant
    workers: int = 1,
    progress: Report = ignore,
) -> BinarizeReport:
    """Write the shards of one split, corpus by corpus.

    The bytes do not depend on the number of processes, or of ranks under `mpirun`; they only
    encode, and one writes. What they have encoded is kept in the folder `.<split>.parts` until the
    shards are complete, so that the same call continues after an interruption.

    Args:
        tokenizers: tokenizers of the text; their fingerprint is stored in the manifest.
        corpora: the texts; one without a name is the whole split, whose manifest names no corpora.
        folder: folder of the shards; see `ds_seq.data.shards`.
        split: `train`, `valid`, `test` or another name.
        languages: source and target language of the split, for the manifest.
        shard_size: number of pairs per shard.
        origin: what the text and the vocabulary were made from, for the manifest.
        workers: number of processes; ignored under `mpirun`.
        progress: called with the number of pairs of each finished part.

    Raises:
        UserError: the sides differ in length, a text is empty or contains an empty line or invalid
            UTF-8, or the disk is full. Existing shards of the split are then unchanged.
    """
    return _binarize(
        tokenizers,
        corpora,
        folder,
        split,
        languages=languages,
        shard_size=shard_size,
        origin=origin,
        corpora=None,
        workers=workers,
        progress=progress,
    )


def _binarize(  # noqa: PLR0913  (see `binarize` and `binarize_corpora`)
    tokenizers: Tokenizers,
    texts: Sequence[CorpusText],
    folder: str | Path,
    split: str,
    *,
    languages: tuple[str, str],
    shard_size: int,
    origin: Origin,
    corpora: Sequence[CorpusRecord] | None,
    workers: int,
    progress: Report,
) -> BinarizeReport:
    """Write the shards of texts; `corpora` says which pairs are whose if the texts do not."""
    plans = _plans(texts, workers)
    corpora = _records(texts, plans) if corpora is None else corpora
    unknown, row = [0, 0], 0
    writer = ShardWriter(
        folder,
        split,
        vocab_hash=tokenizers.fingerprint,
        vocab_size=tokenizers.size,
        languages=languages,
        shard_size=shard_size,
        inputs=[checksum for plan in plans for checksum in plan.sha256],
        origin=origin,
        num_sides=1 if texts[0].text.num_sides == 1 else 2,
    )
    with cleaning_up(), _work_folder(Path(folder), split, tokenizers, plans) as work, writer:
        encoder = PartEncoder(tokenizers, plans, work)
        todo = list(_parts(plans))
        made = map_in_order(_make, encoder, todo, workers)
        for part, _ in zip(todo, made, strict=True):
            content = encoder.read(part)
            if content is None:
                raise UserError(f"{encoder.path(part)}: has been damaged; run the command again")
            _add(writer, content[0], row, corpora)
            row += content[1]["pairs"]
            for side, number in enumerate(content[1]["unknown"]):
                unknown[side] += number
            progress(content[1]["pairs"])
    return BinarizeReport(Manifest.read(manifest_path(folder, split)), *unknown)


def _records(texts: Sequence[CorpusText], plans: Sequence[TextPlan]) -> list[CorpusRecord]:
    """Return the records of the texts that have names."""
    records, first = [], 0
    for text, plan in zip(texts, plans, strict=True):
        if text.name:
            records.append(CorpusRecord(text.name, first, plan.lines, text.languages, plan.sha256))
        first += plan.lines
    return records


def _add(
    writer: ShardWriter, sides: Sequence[TokenBlock], row: int, corpora: Sequence[CorpusRecord]
) -> None:
    """Append the pairs of a part, the first of which is pair `row` of the split."""
    size, start = len(sides[0].lengths), 0
    for corpus in corpora:
        place = corpus.first_row - row
        if not 0 <= place < size:
            continue
        if place > start:
            writer.add_block(*(cut(side, start, place) for side in sides))
        writer.begin_corpus(corpus.name, corpus.languages, corpus.inputs)
        start = place
    writer.add_block(*(cut(side, start, size) for side in sides))


def _plans(corpora: Sequence[CorpusText], workers: int) -> list[TextPlan]:
    paths = [corpus.text for corpus in corpora]
    plans = list(map_in_order(plan_text, parts.PART_LINES, paths, min(workers, len(paths))))
    for corpus, plan in zip(corpora, plans, strict=True):
        if corpus.name and plan.lines == 0:
            raise UserError(
                f"{plan.path.source}: corpus {corpus.name!r} is empty; check its raw text and the "
                "limits of data.clean, or leave it out"
            )
    return plans


def _make(encoder: PartEncoder, part: Part) -> None:
    encoder.make(part)


def _parts(plans: Sequence[TextPlan]) -> Iterator[Part]:
    pairs = [(text, index) for text, plan in enumerate(plans) for index in range(plan.num_parts)]
    for number, (text, index) in enumerate(pairs):
        yield Part(number, text, index)


def _work_path(folder: Path, split: str) -> Path:
    return folder / f".{split}.parts"


def remove_work(folder: str | Path, split: str) -> None:
    """Remove what a call has left that was killed when the shards were complete.

    Raises:
        UserError: it cannot be removed.
    """
    work = _work_path(Path(folder), split)
    with files.writing(work):
        files.remove(work)


@contextmanager
def _work_folder(
    folder: Path, split: str, tokenizers: Tokenizers, plans: Sequence[TextPlan]
) -> Iterator[Path]:
    """Yield the folder of the parts, with those of an interrupted call if they are of use.

    It is removed when the block ends, and also if the text is at fault; else, what is finished is
    kept.
    """
    work = _work_path(folder, split)
    content = {
        "vocab_hash": tokenizers.fingerprint,
        "part_lines": parts.PART_LINES,
        "inputs": [checksum for plan in plans for checksum in plan.sha256],
    }
    with files.writing(work):
        try:
            is_same = not files.changed_settings(work / _PLAN, content)
        except UserError:  # there is none, or it is damaged
            is_same = False
        if is_same:
            files.remove_leftovers(work)
        else:
            files.remove(work)
            work.mkdir(parents=True)
            files.write_json(work / _PLAN, content)
    try:
        yield work
    except BadText:
        files.remove(work)
        raise
    except UserError as error:
        if not any(work.glob("*.part")):
            files.remove(work)
            raise
        raise UserError(
            f"{error}. What is finished is kept in {work}, and the same command continues with it"
        ) from error
    files.remove(work)


def is_current(
    folder: str | Path,
    split: str,
    tokenizers: Tokenizers,
    text: PairPath | Sequence[CorpusText],
    shard_size: int,
    corpora: Sequence[CorpusRecord] = (),
) -> bool:
    """Return whether the existing shards equal those that would be written.

    For `binarize`, only the ids count: the manifest may name other corpora, and where these begin
    within a shard, as in shards that were written before they had names, that is kept.

    Args:
        folder: folder of the shards.
        split: name of the split.
        tokenizers: tokenizers of the text.
        text: the text of `binarize`, or those of `binarize_corpora`.
        shard_size: number of pairs per shard.
        corpora: those of `binarize`.
    """
    path = manifest_path(folder, split)
    if not path.exists():
        return False
    try:
        manifest = Manifest.read(path)
        manifest.check_files(path.parent, full=True)
    except UserError:
        return False
    paths = [text] if isinstance(text, PairPath) else [item.text for item in text]
    if (
        manifest.vocab_hash != tokenizers.fingerprint
        or manifest.sides != paths[0].num_sides
        or manifest.inputs != tuple(text_fingerprint(side) for path in paths for side in path)
        or (corpora and manifest.version == 1)  # which cannot name them
    ):
        return False
    sizes = [shard.pairs for shard in manifest.shards]
    if isinstance(text, PairPath):
        rows = [corpus.num_rows for corpus in corpora]
        return sizes in (_layout(rows, shard_size), _layout([manifest.pairs], shard_size))
    rows = [corpus.num_rows for corpus in manifest.corpora] or [manifest.pairs]
    return sizes == _layout(rows, shard_size) and [
        (corpus.name, corpus.languages) for corpus in manifest.corpora
    ] == [(item.name, item.languages) for item in text if item.name]


def _layout(rows: Sequence[int], shard_size: int) -> list[int]:
    """Return the numbers of pairs of the shards of corpora with so many pairs."""
    return [min(shard_size, size - row) for size in rows for row in range(0, size, shard_size)]
