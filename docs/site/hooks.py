"""Hooks of MkDocs: the site has the folders of the repository, so links work in both.

A document links to its neighbours as on a code host, such as `../configs/OPTIONS.md`. The pages are
therefore not the files of one folder: they are the documents at their own paths, and what they link
to or name in a sentence (pictures, experiments, scripts) stands at its path as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?<![\[`])`([\w./-]+\.md)`(?!\])")


def pages(nav: list) -> Iterator[str]:
    """Yield the paths of all pages in the navigation, relative to the root of the repository."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages(value) if isinstance(value, list) else [value]


def linked_files(page: str) -> Iterator[str]:
    """Yield the paths, from the root, that a page links to or shows.

    Raises:
        PluginError: there is no such file or folder.
    """
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not (ROOT / path).is_file():
            raise PluginError(f"{page}: {target} is not a file of the repository")
        yield path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by the documents of the navigation and what they link to."""
    for file in list(files.documentation_pages()) + list(files.media_files()):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    documents = list(pages(config.nav))
    others = {path for page in documents for path in linked_files(page)}
    others |= {path for path in config.extra_css if (ROOT / path).is_file()}  # plug-ins have others
    for path in [*documents, *sorted(others - set(documents))]:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the documents that a sentence names, such as `docs/EXPERTS.md` in backticks."""
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        for path in (match[1], posixpath.normpath(posixpath.join(here, match[1]))):
            if path != page.file.src_uri and files.get_file_from_path(path) is not None:
                return f"[`{match[1]}`]({posixpath.relpath(path, here or '.')})"
        return match[0]

    text, position = "", 0
    for block in FENCE.finditer(markdown):  # code stays as it is
        text += NAMED.sub(link, markdown[position : block.start()]) + block[0]
        position = block.end()
    return text + NAMED.sub(link, markdown[position:])
