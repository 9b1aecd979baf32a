"""python -m studio: a page to generate images from a caption, inpaint them, edit tokens and compare models.

It uses the registry's champion, or models/package if there is none, or before a first run the example model. Nothing is sent to other machines. Everyone who
reaches the port can generate images, so it listens on this machine only unless --host says otherwise.
"""

import argparse
import contextlib
import signal
import threading
import webbrowser
from pathlib import Path

import torch

import stages.runtime.environment  # noqa: F401  first: no telemetry of any tool
from studio.api.routes import Studio, make_app
from studio.data.gallery import Gallery
from studio.data.versions import EXAMPLE_ID, Versions
from studio.http import server
from studio.worker.process import StudioPaths
from studio.worker.queue import RequestQueue
from thousandwords.api import EXAMPLE_ANSWERS
from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable, translate_write_errors
from thousandwords.inference.package import check_device

MAX_IMAGE_BYTES = 8 * 2**20  # of an image file in a request
BODY_LIMITS = {"/api/images": MAX_IMAGE_BYTES, "/api/reproduce": MAX_IMAGE_BYTES}
OPEN_TO_ALL = (
    "studio: everyone who reaches this machine can generate images, there is no password. "
    "Allow its host name with --allowed-host"
)
# a host that stands for every address of this machine -> the address to open the page at
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__, prog="python -m studio")
    add, name = arguments.add_argument, "a further host name to answer to"
    add("--package", type=Path, help="(default: models/package, or before a first run the example model)")
    add("--version", help="the default model: package, a number or an alias (default: champion)")
    add("--pairs", type=Path, default=Path("data/pairs"), help="the data set to show (default: data/pairs)")
    gallery = Path("generated/gallery")
    add("--gallery", type=Path, default=gallery, help=f"where past generations are kept (default: {gallery})")
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=7860, help="(default: 7860)")
    add("--allowed-host", action="append", default=[], metavar="NAME", help=name)
    add("--queue", type=int, default=16, help="requests that may wait; further ones get 429 (default: 16)")
    add("--deadline", type=float, default=120, help="seconds that one request may take (default: 120)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--open", action="store_true", help="open the page in a browser")
    options = arguments.parse_args(argv)
    server.start_log()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with one_sentence("studio"), contextlib.suppress(KeyboardInterrupt):
        serve(options)


def serve(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises UserError before a model is loaded."""
    if options.queue < 1 or options.deadline <= 0:
        raise UserError("--queue and --deadline must be above 0")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    check_device(device)
    with translate_write_errors(options.gallery):
        options.gallery.mkdir(parents=True, exist_ok=True)
    check_writable(options.gallery)
    versions = Versions(Path("."), options.package, options.version)
    if versions.find().id == EXAMPLE_ID:
        print(f"studio: {EXAMPLE_ANSWERS}", flush=True)
    with server.open_socket("the studio", options.host, options.port) as listener:
        port = listener.getsockname()[1]
        address = page_address(options.host, port)
        print(f"studio: {address}  (Ctrl-C ends it)", flush=True)
        if options.host in WILDCARDS:
            print(OPEN_TO_ALL, flush=True)
        if options.open:
            threading.Timer(1, webbrowser.open, [address]).start()
        paths = StudioPaths(options.pairs, options.gallery, device=device)
        queue = RequestQueue(paths, lambda: versions.folder(versions.find()), options.queue)
        app = make_app(Studio(queue, versions, Gallery(options.gallery), options.deadline))
        hosts = [*options.allowed_host, *([] if options.host in WILDCARDS else [options.host])]
        server.new_server(app, hosts, BODY_LIMITS).run(sockets=[listener])


def page_address(host: str, port: int) -> str:
    """The page's URL: ("0.0.0.0", 7860) -> "http://127.0.0.1:7860", ("::1", 7860) -> "http://[::1]:7860"."""
    name = WILDCARDS.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


if __name__ == "__main__":
    main()
