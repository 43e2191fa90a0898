"""The server: an application on a port, until a signal ends it."""

from __future__ import annotations

import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ds_seq.errors import UserError
from ds_seq.serving.gate import Doorkeeper

_LONGEST_IDLE = 75  # seconds that a connection without requests is kept


class Server(uvicorn.Server):
    """A server that answers all requests that have arrived before it ends.

    The first SIGTERM or SIGINT makes it refuse new requests; a second one ends it at once.

    Args:
        config: what to serve, and where.
        doorkeeper: state that the application shares.
    """

    def __init__(self, config: uvicorn.Config, doorkeeper: Doorkeeper) -> None:
        super().__init__(config)
        self._doorkeeper = doorkeeper

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"ds-seq: serving at http://{shown}:{port}/", file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, or end at once if they are refused already."""
        if self._doorkeeper.is_closing:
            self.should_exit = self.force_exit = True
        self._doorkeeper.is_closing = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end: all requests are answered."""
        is_over = await super().on_tick(counter)
        return is_over or (self._doorkeeper.is_closing and not self._doorkeeper.in_flight)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the address does not exist, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be used ({error.strerror or error}); choose "
            "another one"
        ) from None
    return listening


def serve(app: FastAPI, doorkeeper: Doorkeeper, listening: socket.socket, drain: float) -> None:
    """Serve an application until a signal ends it.

    Args:
        app: the application.
        doorkeeper: see `Server`.
        listening: socket to listen to.
        drain: most seconds to wait for connections at the end.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_LONGEST_IDLE,
        timeout_graceful_shutdown=max(int(drain), 1),
        server_header=False,
    )
    Server(config, doorkeeper).run(sockets=[listening])
