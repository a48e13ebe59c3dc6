"""What the command line of the server says, as plain data, and the app that is built from it."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI

from ming.loading import LoadOptions
from ming.processing_bailingmm import BailingMMProcessor
from ming.serving.compiling import compile_steps
from ming.serving.connections import LimitedConnection
from ming.serving.fetch import Fetcher
from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits, Site

SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class ServerOptions:
    """A replica in another process builds its app from these.

    Args:
        model: directory or Hub id.
        loading: where and how it computes; what is compiled is compiled before the server starts.
        without: parts that are not loaded.
        host, port, log_level: where and how the server runs.
        allow_remote: whether images, audio and videos are read from addresses.
        limits, settings, site: see there.
    """

    model: str
    loading: LoadOptions
    without: tuple[str, ...]
    host: str
    port: int
    log_level: str
    allow_remote: bool
    limits: Limits
    settings: EngineSettings
    site: Site

    def uvicorn_options(self) -> dict[str, Any]:
        """Options of `uvicorn.run`."""
        return {
            "host": self.host,
            "port": self.port,
            "log_level": self.log_level,
            "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
            "http": partial(LimitedConnection, self.limits),
            "ws": "none",
        }


def set_up_logging(level: str) -> None:
    """Logging of a process that serves; `level` such as "info"."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log the addresses of clients' media


def build_app(options: ServerOptions) -> FastAPI:
    """Load the model and make the app that serves it."""
    without: dict[str, Any] = {f"load_{part}": False for part in options.without}
    model = options.loading.load(options.model, **without)
    processor = BailingMMProcessor.from_pretrained(options.model)
    limits = options.limits
    if options.loading.compiled:
        compile_steps(model, options.settings.batch, options.settings.streams, limits.new_tokens, limits.drawings)
    fetcher = Fetcher(options.allow_remote, limits.remote_bytes, limits.remote_seconds)
    return create_app(model, processor, limits, options.settings, options.site, fetcher)


__all__ = ["ServerOptions", "build_app", "set_up_logging"]
