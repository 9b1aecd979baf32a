"""python -m studio: a page to type a caption and watch pictures come, complete one, set its words, look back and compare.

Draws with the registry's champion, or with models/package where there is none. Nothing leaves this machine; whoever can reach the
port may draw, so it listens to this machine alone unless --host says otherwise.
"""
from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path

import torch
import uvicorn

import stages._environment  # noqa: F401  first: no telemetry of any tool
from studio.app import make_app
from studio.connections import Protocol
from studio.courier import Courier
from studio.doors import guarded
from studio.gallery import Gallery
from studio.painter import Places
from studio.routes import Studio
from studio.versions import Versions
from thousandwords.errors import UserError
from thousandwords.package import check_device

PICTURE = 8 * 2**20  # bytes of a picture that is sent
UPLOADS = {"/api/pictures": PICTURE, "/api/redraw": PICTURE}
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # every address of this machine -> one to open the page by
GRACE = 3  # seconds that open answers have when the studio is ended


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="python -m studio", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    words.add_argument("--package", type=Path, default=Path("models/package"), help="(default: models/package)")
    words.add_argument("--version", help="which one draws: package, a number or an alias (default: champion)")
    words.add_argument("--pairs", type=Path, default=Path("data/pairs"), help="the data set that is shown (default: data/pairs)")
    words.add_argument("--gallery", type=Path, default=Path("drawn/gallery"), help="past draws (default: drawn/gallery)")
    words.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1, this machine alone)")
    words.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    words.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a further name it is called by")
    words.add_argument("--queue", type=int, default=16, help="requests that may wait; others come again (default: 16)")
    words.add_argument("--deadline", type=float, default=120, help="seconds that one request may take (default: 120)")
    words.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    words.add_argument("--open", action="store_true", help="opens the page in a browser")
    return words


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended all, and passes it on
            serve(options)
    except UserError as error:
        print(f"studio: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def serve(options: argparse.Namespace) -> None:
    """Serves until Ctrl-C. Raises UserError before anything is loaded."""
    if options.queue < 1 or options.deadline <= 0:
        raise UserError("--queue and --deadline should be above 0")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    check_device(device)
    versions = Versions(Path("."), options.package, options.version)
    versions.default()
    with listening(options.host, options.port) as door:
        port = door.getsockname()[1]
        address = address_of(options.host, port)
        print(f"studio: {address}  (Ctrl-C ends it)", flush=True)
        if options.host in WILDCARDS:
            print("studio: whoever reaches this machine may draw, there is no password. Name it with --allowed-host", flush=True)
        if options.open:
            threading.Timer(1, webbrowser.open, [address]).start()
        places = Places(options.pairs, options.gallery, device=device)
        courier = Courier(places, lambda: versions.folder(versions.default()), options.queue)
        app = make_app(Studio(courier, versions, Gallery(options.gallery), options.deadline))
        names = [*options.allowed_host, *([] if options.host in WILDCARDS else [options.host])]
        config = uvicorn.Config(guarded(app, hosts=names, limits=UPLOADS), http=Protocol, log_level="warning", ws="none",
                                timeout_graceful_shutdown=GRACE, server_header=False, proxy_headers=False)  # fmt: skip
        uvicorn.Server(config).run(sockets=[door])


def address_of(host: str, port: int) -> str:
    """Where the page is: ("0.0.0.0", 7860) -> "http://127.0.0.1:7860", ("::1", 7860) -> "http://[::1]:7860"."""
    name = WILDCARDS.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where it cannot."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        told = f"the studio cannot listen at {host}:{port}: {error}. Give another --port, or end what uses this one"
        raise UserError(told) from error


if __name__ == "__main__":
    main()
