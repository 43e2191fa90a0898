"""The documentation as a site: it builds, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

import ds_seq
from tests.documents import ROOT, site_pages

LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_to_nothing_is_named(
    hooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "curve.png").touch()
    page = tmp_path / "docs" / "A.md"
    page.write_text("![](../curve.png) [x](https://x.org) [y](#y)\n```text\n[z](none)\n```\n")
    assert list(hooks.linked_files("docs/A.md")) == ["curve.png"]
    page.write_text("[z](none.md#z)\n")
    with pytest.raises(Exception, match=r"docs/A.md: none.md is not a file"):
        list(hooks.linked_files("docs/A.md"))


@pytest.mark.slow  # .ci/run builds it, too
@pytest.mark.timeout(600)
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(built) >= len(site_pages())
    assert [found[0] for text in built.values() for found in LOADED.finditer(text)] == []
    sheets = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")]
    assert sheets and not any("url(http" in text for text in sheets)
    interface = built[Path("docs/API/index.html")]
    assert all(f'id="ds_seq.{name}"' in interface for name in ds_seq.__all__ if name[0] != "_")
    assert 'href="../../configs/OPTIONS/"' in built[Path("docs/TRAINING/index.html")]
