"""The recipes of published tasks: WMT16, WMT14, IWSLT14; XSum and CNN/DailyMail for summarization.

Sizes and checksums are published facts. Where they come from: the sums of the training archives of
WMT are those of TensorFlow Datasets, those of test sets are sacreBLEU's. Numbers of pairs are those
of the findings of the workshops and of the corpora's own pages. A missing checksum is not known to
us: see `Archive.checksum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ds_seq.data.download import Archive, recorded_sums
from ds_seq.data.recipe import HELD_OUT, Corpus, Recipe
from ds_seq.errors import UserError
from ds_seq.names import SIDES, SPLITS
from ds_seq.text.forms import Segments, TaggedTalks

_WMT13 = "https://www.statmt.org/wmt13"
_WMT14 = "https://www.statmt.org/wmt14"

EUROPARL = Archive(
    f"{_WMT13}/training-parallel-europarl-v7.tgz",
    657_632_379,
    "sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
)
COMMON_CRAWL = Archive(
    f"{_WMT13}/training-parallel-commoncrawl.tgz",
    918_311_367,
    "sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
)
NEWS_V9 = Archive(
    f"{_WMT14}/training-parallel-nc-v9.tgz",
    80_418_416,
    "sha256:cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
)
NEWS_V11 = Archive(
    "https://data.statmt.org/wmt16/translation-task/training-parallel-nc-v11.tgz",
    75_178_032,
    "sha256:cfe8ab047e05043476e498ee765c98e939c7b7d6d294e856344c84476b619d6a",
)
UN = Archive(f"{_WMT13}/training-parallel-un.tgz")
GIGA = Archive("https://www.statmt.org/wmt10/training-giga-fren.tar", 2_595_102_720)
TEST13 = Archive(f"{_WMT13}/test.tgz", checksum="md5:48eca5d02f637af44e85186847141f67")
TEST14 = Archive(f"{_WMT14}/test-full.tgz", checksum="md5:a8cd784e006feb32ac6f3d9ec7eb389a")
TED14 = Archive(
    "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
    checksum="md5:10936dfdf616504ddbd844e91b94ef4a",
)


def _lines(name: str, archive: Archive, stem: str, ends: tuple[str, str], published: int) -> Corpus:
    members = tuple(f"{stem}.{end}" for end in ends)
    return Corpus(name, archive, members, published=published)


def _newstest(year: int, archive: Archive, members: tuple[str, str], published: int) -> Corpus:
    return Corpus(f"newstest{year}", archive, members, Segments(), published)


_EN_DE, _EN_FR = ("en", "de"), ("en", "fr")

WMT16_EN_DE = Recipe(
    "wmt16_en_de",
    _EN_DE,
    train=(
        _lines("europarl-v7", EUROPARL, "training/europarl-v7.de-en", _EN_DE, 1_920_209),
        _lines("commoncrawl", COMMON_CRAWL, "commoncrawl.de-en", _EN_DE, 2_399_123),
        _lines(
            "news-commentary-v11",
            NEWS_V11,
            "training-parallel-nc-v11/news-commentary-v11.de-en",
            _EN_DE,
            242_770,
        ),
    ),
    valid=(
        _newstest(
            2013, TEST13, ("test/newstest2013-src.en.sgm", "test/newstest2013-src.de.sgm"), 3_000
        ),
    ),
    test=(
        _newstest(
            2014,
            TEST14,
            (
                "test-full/newstest2014-deen-src.en.sgm",
                "test-full/newstest2014-deen-ref.de.sgm",
            ),
            3_003,
        ),
    ),
)

WMT14_EN_FR = Recipe(
    "wmt14_en_fr",
    _EN_FR,
    train=(
        _lines("europarl-v7", EUROPARL, "training/europarl-v7.fr-en", _EN_FR, 2_007_723),
        _lines("commoncrawl", COMMON_CRAWL, "commoncrawl.fr-en", _EN_FR, 3_244_152),
        _lines("un", UN, "un/undoc.2000.fr-en", _EN_FR, 12_886_831),
        _lines("news-commentary-v9", NEWS_V9, "training/news-commentary-v9.fr-en", _EN_FR, 183_251),
        _lines("giga-fren", GIGA, "giga-fren.release2.fixed", ("en.gz", "fr.gz"), 22_520_376),
    ),
    valid=(
        _newstest(
            2013, TEST13, ("test/newstest2013-src.en.sgm", "test/newstest2013-src.fr.sgm"), 3_000
        ),
    ),
    test=(
        _newstest(
            2014,
            TEST14,
            (
                "test-full/newstest2014-fren-src.en.sgm",
                "test-full/newstest2014-fren-ref.fr.sgm",
            ),
            3_003,
        ),
    ),
)


def _talks(name: str, published: int) -> Corpus:
    stem = f"de-en/IWSLT14.{name}.de-en"
    members = (f"{stem}.de.xml", f"{stem}.en.xml")
    return Corpus(name.rpartition(".")[2], TED14, members, Segments(), published)


IWSLT14_DE_EN = Recipe(
    "iwslt14_de_en",
    ("de", "en"),
    train=(
        Corpus(
            "train",
            TED14,
            ("de-en/train.tags.de-en.de", "de-en/train.tags.de-en.en"),
            TaggedTalks(),
            held_out=23,
        ),
    ),
    valid=(),
    test=(
        _talks("TED.dev2010", 887),
        _talks("TEDX.dev2012", 1_165),
        _talks("TED.tst2010", 1_565),
        _talks("TED.tst2011", 1_433),
        _talks("TED.tst2012", 1_700),
    ),
    note="published: 160,239 pairs for training and 7,283 for validation, after pairs of more than "
    "175 tokens or with a ratio above 1.5 were removed; here `ds-seq prepare` does that",
)

_UNTRIED = (
    "the archive comes from a server that we could not try, and leaves out pairs with an empty "
    "side, so it may have a few less than published"
)


def _six_files(name: str, url: str, folder: str, published: tuple[int, int, int]) -> Recipe:
    """Return the recipe of an archive with {train,val,test}.{source,target} in a folder."""
    archive = Archive(f"https://cdn-datasets.huggingface.co/{url}")
    train, valid, test = (
        (_lines(split, archive, f"{folder}/{split}", SIDES, number),)
        for split, number in zip(("train", "val", "test"), published, strict=True)
    )
    return Recipe(name, SIDES, train, valid, test, note=_UNTRIED)


# sizes: Narayan et al., 2018; See et al., 2017; the findings of WMT16
XSUM = _six_files("xsum", "summarization/xsum.tar.gz", "xsum", (204_045, 11_332, 11_334))
CNN_DM = _six_files("cnn_dm", "summarization/cnn_dm_v2.tgz", "cnn_cln", (287_226, 13_368, 11_490))
WMT16_EN_RO = _six_files(
    "wmt16_en_ro", "translation/wmt_en_ro.tar.gz", "wmt_en_ro", (610_320, 1_999, 1_999)
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (WMT16_EN_DE, WMT14_EN_FR, IWSLT14_DE_EN, XSUM, CNN_DM, WMT16_EN_RO)
}


def with_sums(recipe: Recipe, sums: Path) -> Recipe:
    """Return a recipe whose archives have other checksums, as those of a mirror that packs anew.

    Args:
        recipe: the recipe.
        sums: file in the format of `sha256sum`; archives that it does not name keep theirs.

    Raises:
        UserError: the file cannot be read or has another format.
    """
    if not sums.is_file():
        raise UserError(f"{sums}: no such file of checksums")
    known = {Path(name).name: sha256 for name, sha256 in recorded_sums(sums).items()}

    def changed(corpus: Corpus) -> Corpus:
        archive = corpus.archive
        if archive.name not in known:
            return corpus
        return replace(corpus, archive=Archive(archive.url, None, f"sha256:{known[archive.name]}"))

    return replace(
        recipe,
        train=tuple(map(changed, recipe.train)),
        valid=tuple(map(changed, recipe.valid)),
        test=tuple(map(changed, recipe.test)),
    )


def raw_section(recipe: Recipe, folder: Path) -> str:
    """Return the lines of `data.raw` that name the files of a recipe."""
    corpora = dict(zip(SPLITS, (recipe.train, recipe.valid, recipe.test), strict=True))
    names = {split: [corpus.name for corpus in corpora[split]] for split in SPLITS}
    names["valid"] = names["valid"] or [HELD_OUT]
    lines = ["  raw:"]
    for split, stems in names.items():
        sides = [
            f"{side}: [{', '.join(str(folder / f'{stem}.{code}') for stem in stems)}]"
            for side, code in zip(SIDES, recipe.languages, strict=True)
        ]
        lines.append(f"    {split}: {{{', '.join(sides)}}}")
    return "\n".join(lines)
