"""A small mirror of the archives of recipes, in their layout, and a server that has ranges."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from ds_seq.data.download import Archive
from ds_seq.data.recipe import Corpus, Recipe
from ds_seq.text.forms import Segments, TaggedTalks

Pairs = list[tuple[str, str]]


class Server(ThreadingHTTPServer):
    """Serves a folder on loopback.

    Attributes:
        most_bytes: bytes after which each answer breaks off; None: it is whole.
        requests: the `Range` of each request, None without one.
        has_ranges: whether it knows ranges.
    """

    most_bytes: int | None = None
    has_ranges = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        version = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        same = self.headers.get("If-Range", version) == version
        if wanted and same and self.server.has_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", version)
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest if self.server.most_bytes is None else rest[: self.server.most_bytes])

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def text_of(corpus: Corpus) -> Pairs:
    """The pairs of a corpus of the mirror."""
    return [(f"{corpus.name} {number}", f"{corpus.name} <{number}>") for number in range(50)]


def write_mirror(recipe: Recipe, folder: Path, changes: dict[str, Pairs] | None = None) -> Path:
    """Write the archives of a recipe with small texts; return a file of their checksums."""
    members: dict[Archive, dict[str, bytes]] = {}
    for corpus in (*recipe.train, *recipe.valid, *recipe.test):
        pairs = (changes or {}).get(corpus.name, text_of(corpus))
        for side, name in enumerate(corpus.members):
            members.setdefault(corpus.archive, {})[name] = _content(corpus, name, pairs, side)
    sums = []
    for archive, content in members.items():
        path = folder / urlsplit(archive.url).path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as packed:
            for name, text in {"README": b"no text\n", **content}.items():
                item = tarfile.TarInfo(f"./{name}" if name.startswith("commoncrawl") else name)
                item.size = len(text)
                packed.addfile(item, io.BytesIO(text))
        sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (folder / "SUMS").write_text("".join(sums))
    return folder / "SUMS"


def _content(corpus: Corpus, name: str, pairs: Pairs, side: int) -> bytes:
    lines = [pair[side] for pair in pairs]
    if isinstance(corpus.form, Segments):
        marked = (line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)
        segments = [f'<seg id="{n}"> {line} </seg>\n' for n, line in enumerate(marked)]
        return f'<srcset setid="x">\n<doc>\n{"".join(segments)}</doc>\n</srcset>\n'.encode()
    if isinstance(corpus.form, TaggedTalks):
        lines = ["<url>x</url>", f"<title>{lines[0]}</title>", "<speaker>y</speaker>", *lines[1:]]
    text = "".join(f"{line}\n" for line in lines).encode()
    return gzip.compress(text) if name.endswith(".gz") else text
