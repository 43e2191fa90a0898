#!/usr/bin/env python3
"""serving.py: a server of CTranslate2 with the same paths, made of FastAPI and uvicorn.

    python benchmarks/serving_side.py EXPORT VOCABULARY BEAM

Requests are translated one by one, in threads of the application, as its documentation shows:
CTranslate2 joins no batches of different calls by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ctranslate2
import uvicorn
from fastapi import FastAPI

from ds_seq.serving.server import listen
from ds_seq.text.sentencepiece import SentencePieceTokenizer


def build(export: str, vocabulary: str, beam: int) -> FastAPI:
    """Return the application."""
    tokenizer = SentencePieceTokenizer.load(Path(vocabulary))
    translator = ctranslate2.Translator(
        export, inter_threads=1, intra_threads=1, compute_type="float32"
    )
    end = tokenizer.pieces([tokenizer.symbols.eos])
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces(range(len(tokenizer))))}
    app = FastAPI()

    def translate(body: dict[str, Any]) -> dict[str, Any]:
        lines = [body["text"]] if isinstance(body["text"], str) else body["text"]
        rows = [tokenizer.pieces(row) + end for row in tokenizer.encode_lines(lines)]
        longest = max(map(len, rows)) + 1  # counts the end symbol
        found = translator.translate_batch(rows, beam_size=beam, max_decoding_length=longest)
        texts = [tokenizer.decode([ids[piece] for piece in one.hypotheses[0]]) for one in found]
        return {"lines": [{"hypotheses": [{"text": text}]} for text in texts]}

    app.post("/translate")(translate)  # no coroutine: FastAPI calls it in a thread
    return app


class Announced(uvicorn.Server):
    """A server that says where it is once it can be reached."""

    async def startup(self, sockets: Any = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets)
        print(f"serving at http://127.0.0.1:{sockets[0].getsockname()[1]}/", file=sys.stderr)


if __name__ == "__main__":
    served = build(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    config = uvicorn.Config(served, log_level="warning", access_log=False)
    Announced(config).run(sockets=[listen("127.0.0.1", 0)])
