"""Whether the packages of a server are installed."""

from __future__ import annotations

from ds_seq.errors import UserError


def require_packages(command: str) -> None:
    """Require the packages of the extra `[serve]`.

    Args:
        command: what needs them, for the message.

    Raises:
        UserError: one of them is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{command} needs the package {error.name}; install what it needs with "
            "`pip install 'ds_seq[serve]'`"
        ) from None
