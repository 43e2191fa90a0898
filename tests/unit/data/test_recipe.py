"""Recipes make the text of their task from a mirror with the layout of the real archives."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ds_seq.config.raw_text import raw_texts
from ds_seq.config.text_files import RawConfig
from ds_seq.data import recipe as module
from ds_seq.data.download import Archive
from ds_seq.data.recipe import Corpus, Recipe, run
from ds_seq.data.recipes import IWSLT14_DE_EN, RECIPES, WMT16_EN_DE, raw_section, with_sums
from ds_seq.errors import UserError
from ds_seq.text.forms import Table
from ds_seq.text.xml_forms import Tmx
from tests.unit.data.mirror import serving, text_of, write_mirror

SCRIPTS = Path(__file__).parents[3] / "prepare_data"
Capture = pytest.CaptureFixture[str]


def pairs(folder: Path, recipe: Recipe, name: str) -> list[tuple[str, str]]:
    sides = (
        (folder / f"{name}.{code}").read_text(encoding="utf-8").split("\n")[:-1]
        for code in recipe.languages
    )
    return list(zip(*sides, strict=True))


def corpora(recipe: Recipe) -> tuple[Corpus, ...]:
    return (*recipe.train, *recipe.valid, *recipe.test)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_from_a_mirror_of_its_layout(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    mirror, out = tmp_path / "mirror", tmp_path / "out"
    recipe = with_sums(RECIPES[name], write_mirror(RECIPES[name], mirror))
    with serving(mirror) as server:
        sizes = run(recipe, out, server.url)
        num_requests = len(server.requests)
    for corpus in corpora(recipe):
        expected = text_of(corpus)
        if corpus.held_out:
            assert pairs(out, recipe, "valid") == [expected[22], expected[45]]
            expected = [pair for n, pair in enumerate(expected, 1) if n % 23]
        assert pairs(out, recipe, corpus.name) == expected
        assert sizes[corpus.name] == len(expected)
    captured = capsys.readouterr()
    for corpus in corpora(recipe):
        if corpus.published is not None:
            assert f"published: {corpus.published:,}" in captured.out
            assert f"{corpus.name} has 50 pairs, not the published" in captured.err
    # nothing is unpacked, or asked for, again
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    assert run(recipe, out, str(mirror)) == sizes
    assert num_requests == len({corpus.archive.name for corpus in corpora(recipe)})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (out / "unpacked").exists() and not list(out.glob(".*"))


@pytest.mark.parametrize("name", RECIPES)
def test_an_experiment_takes_the_printed_section(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    raw = RawConfig.model_validate(yaml.safe_load(raw_section(recipe, tmp_path))["raw"])
    for split, sets in (("train", recipe.train), ("valid", recipe.valid), ("test", recipe.test)):
        names = [corpus.name for corpus in sets] or ["valid"]
        texts = raw_texts(raw, split, recipe.languages)
        assert [Path(text.target).name for text in texts] == [
            f"{name}.{recipe.languages[1]}" for name in names
        ]


def test_what_is_published_adds_up() -> None:
    """The totals of the findings of WMT16, and the numbers that all papers have for the others."""
    totals = {
        name: sum(corpus.published or 0 for corpus in recipe.train)
        for name, recipe in RECIPES.items()
    }
    assert totals["wmt16_en_de"] == 4_562_102 and totals["wmt14_en_fr"] == 40_842_333
    assert sum(corpus.published or 0 for corpus in IWSLT14_DE_EN.test) == 6_750


def with_overlap(mirror: Path) -> Recipe:
    test = text_of(WMT16_EN_DE.test[0])
    own = text_of(WMT16_EN_DE.train[1])
    changed = {"commoncrawl": [*own[:10], (f" {test[3][0]}", test[3][1]), *own[10:], test[7]]}
    return with_sums(WMT16_EN_DE, write_mirror(WMT16_EN_DE, mirror, changed))


def test_overlap_of_training_and_test_is_refused(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    recipe = with_overlap(tmp_path / "mirror")
    with pytest.raises(UserError) as refused:
        run(recipe, out, str(tmp_path / "mirror"))
    message = str(refused.value)
    assert message.startswith("commoncrawl: 2 of its pairs are in a test set, too (line 11 ' news")
    assert "in newstest2014; line 52 " in message and "OVERLAP=drop" in message
    assert "\n" not in message
    names = {path.name for path in out.iterdir()}
    assert {"europarl-v7.en", "news-commentary-v11.de", "newstest2014.de"} <= names
    assert "commoncrawl.en" not in names
    # finished parts are kept
    before = (out / "europarl-v7.en").stat().st_mtime_ns
    assert run(recipe, out, str(tmp_path / "mirror"), "drop")["commoncrawl"] == 50
    assert "commoncrawl                       52 pairs" in capsys.readouterr().out
    assert pairs(out, recipe, "commoncrawl") == text_of(recipe.train[1])
    assert run(recipe, out, str(tmp_path / "mirror"), "keep")["commoncrawl"] == 52
    assert before == (out / "europarl-v7.en").stat().st_mtime_ns


def test_a_truncated_archive_and_one_without_a_member(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_mirror(WMT16_EN_DE, mirror)
    recipe = replace(
        WMT16_EN_DE,
        **{
            split: tuple(
                replace(corpus, archive=Archive(corpus.archive.url))
                for corpus in getattr(WMT16_EN_DE, split)
            )
            for split in ("train", "valid", "test")
        },
    )
    path = mirror / "wmt13/training-parallel-commoncrawl.tgz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as refused:
        run(recipe, tmp_path / "out", str(mirror))
    message = str(refused.value)
    assert message.startswith(f"{path}: cannot be unpacked (") and "\n" not in message
    assert (tmp_path / "out/europarl-v7.de").exists() and not (tmp_path / "out/unpacked").exists()
    path.write_bytes((mirror / "wmt13/training-parallel-europarl-v7.tgz").read_bytes())
    (tmp_path / "out/archives/SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"commoncrawl\.tgz: has no commoncrawl\.de-en\.en and no"):
        run(recipe, tmp_path / "out", str(mirror))


def test_unequal_sides(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    first = WMT16_EN_DE.train[0]
    odd = replace(first, members=(first.members[0], first.members[0] + "x"))
    recipe = replace(WMT16_EN_DE, train=(odd,))
    sums = write_mirror(recipe, mirror, {first.name: [("a", "b"), ("c", "d\ne")]})
    with pytest.raises(UserError, match=r"differ in the number of lines: .* has 2, .* has 3"):
        run(with_sums(recipe, sums), tmp_path / "out", str(mirror))
    assert not (tmp_path / "out/europarl-v7.en").exists()


def test_other_forms_are_unpacked_too(tmp_path: Path) -> None:
    """A table and a memory that are no archives, as corpora of other campaigns."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "x.tsv").write_text("1\tone\teins\n2\ttwo\tzwei\n", encoding="utf-8")
    (mirror / "x.tmx").write_text(
        '<?xml version="1.0"?><tmx><body><tu><tuv xml:lang="de"><seg>drei</seg></tuv>'
        '<tuv xml:lang="en"><seg>three</seg></tuv></tu></body></tmx>',
        encoding="utf-8",
    )
    table = Corpus("table", Archive("https://x.org/x.tsv"), (), Table((2, 3), header=False))
    memory = Corpus("memory", Archive("https://x.org/x.tmx"), (), Tmx(("en", "de")))
    recipe = Recipe("x", ("en", "de"), (table,), (), (memory,))
    run(recipe, tmp_path / "out", str(mirror))
    assert pairs(tmp_path / "out", recipe, "table") == [("one", "eins"), ("two", "zwei")]
    assert pairs(tmp_path / "out", recipe, "memory") == [("three", "drei")]


def test_a_full_disk_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    recipe = with_sums(WMT16_EN_DE, write_mirror(WMT16_EN_DE, mirror))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_save", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some"):
        run(recipe, tmp_path / "out", str(mirror))
    assert not list((tmp_path / "out").glob("newstest*"))


def script(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    command = ["bash", str(SCRIPTS / "wmt16_en_de.sh"), str(folder), *arguments]
    environment = {**os.environ, **variables, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_script(tmp_path: Path) -> None:
    mirror, out = tmp_path / "mirror", tmp_path / "out"
    sums = write_mirror(WMT16_EN_DE, mirror)
    code, _, errors = script(out, WMT_MIRROR=str(mirror))  # published checksums are compared
    assert code == 2 and "its MD5 is " in errors and len(errors.splitlines()) == 1
    code, output, errors = script(out, "--sums", str(sums), WMT_MIRROR=str(mirror))
    assert code == 0 and "training together                150 pairs" in output
    assert f"train: {{source: [{out}/europarl-v7.en, " in output
