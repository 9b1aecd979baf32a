"""python -m flows.services.s3_server: an S3-compatible store in one folder, by OpenStack Swift.

Swift is four servers and an updater. Only the first, the proxy, speaks S3 and checks the key; the others accept
every request, so they listen on socket files in the store's folder, which is its owner's only. The keys come from
AWS_ACCESS_KEY_ID (account:user) and AWS_SECRET_ACCESS_KEY, so that no list of processes shows them.
"""

import ctypes
import multiprocessing
import os
import pwd
import secrets
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

from flows.command_line import one_sentence, parser
from thousandwords.core.errors import UserError

BUCKETS = ("mlflow", "dvc")
# the number in Swift's settings and the name of the socket file
PARTS = {"account": 1, "container": 2, "object": 3}
SECONDS_TO_START = 120
PIPELINE = "catch_errors gatekeeper healthcheck proxy-logging listing_formats bulk s3api tempauth copy slo dlo proxy-logging"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def configuration(
    folder: Path, host: str, port: int, access_key: str, secret_key: str, salt: str
) -> dict[str, str]:
    """Swift's configuration, {file name: text}; `salt` goes into every path on disk and must not change."""
    account, _, name = access_key.partition(":")
    if not (account.isalnum() and name.isalnum()):
        needs = "it must be account:user, letters and digits only"
        raise UserError(f"AWS_ACCESS_KEY_ID is {access_key!r}; {needs}")
    user = pwd.getpwuid(os.getuid()).pw_name
    common = f"swift_dir = {folder}\nuser = {user}\nworkers = 0\nlog_level = WARNING\nrecon_cache_path = {folder}\n"
    filters = set(PIPELINE.split()) - {"tempauth"}
    files = {
        "swift.conf": f"[swift-hash]\nswift_hash_path_suffix = {salt}\n[storage-policy:0]\nname = one\ndefault = yes\n",
        "proxy.conf": f"[DEFAULT]\nbind_ip = {host}\nbind_port = {port}\n{common}"
        f"[pipeline:main]\npipeline = {PIPELINE} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        + "".join(f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n" for name in filters)
        + f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_{account}_{name} = {secret_key} .admin\n",
    }
    for part, number in PARTS.items():
        files[f"{part}.conf"] = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {number}\n{common}"
            f"devices = {folder / 'devices'}\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {part}-server\n[app:{part}-server]\nuse = egg:swift#{part}\n"
        )
    files["object.conf"] += "[object-updater]\ninterval = 15\n"
    return files


def prepare(folder: Path, host: str, port: int, access_key: str, secret_key: str) -> None:
    """Write the configuration and the rings (Swift's map of objects to devices: here one device)."""
    from swift.common.ring import RingBuilder

    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "sockets").mkdir(mode=0o700, exist_ok=True)
    (folder / "ready").unlink(missing_ok=True)  # left by a killed store
    salt = folder / "salt"
    if not salt.is_file():
        salt.write_text(secrets.token_hex(16))
    for name, text in configuration(folder, host, port, access_key, secret_key, salt.read_text()).items():
        (folder / name).write_text(text)
    for part, number in PARTS.items():
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        device = {"region": 1, "zone": 1, "device": "disk", "weight": 1.0}
        builder.add_dev({**device, "ip": "127.0.0.1", "port": number})
        builder.rebalance(seed=0)
        builder.get_ring().save(str(folder / f"{part}.ring.gz"))


def run(folder: Path, port: int) -> int:
    """Run all of the store's processes until one of them ends or a signal comes; then end the others."""
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    fork = multiprocessing.get_context("fork")
    parts = [*PARTS, "proxy", "updater"]
    running = {name: fork.Process(target=_run_part, args=(name, folder), name=name) for name in parts}
    try:
        for process in running.values():
            process.start()
        make_buckets(f"http://127.0.0.1:{port}", running)
        print("store: ready", flush=True)
        (folder / "ready").touch()
        wait([process.sentinel for process in running.values()])
        _check_alive(running)
        return 1
    finally:
        (folder / "ready").unlink(missing_ok=True)
        for process in running.values():
            if process.pid:
                process.terminate()
                process.join()


def _run_part(name: str, folder: Path) -> None:
    """One of Swift's servers, or its updater, in this process; it ends with its parent."""
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    from swift.common.utils import set_swift_dir
    from swift.common.wsgi import run_wsgi

    set_swift_dir(str(folder))  # the updater reads swift.conf from /etc/swift, whatever its own file says
    _use_socket_files(folder / "sockets")
    if name == "updater":
        from swift.common.daemon import run_daemon
        from swift.obj.updater import ObjectUpdater

        run_daemon(ObjectUpdater, str(folder / "object.conf"), verbose=True)
    else:
        sys.exit(run_wsgi(str(folder / f"{name}.conf"), f"{name}-server", verbose=True))


def _use_socket_files(sockets: Path) -> None:
    """Let Swift's servers listen on, and connect to, a socket file in place of each port of PARTS."""
    from eventlet import listen
    from eventlet.green import socket
    from swift.common import wsgi
    from swift.common.bufferedhttp import BufferedHTTPConnection

    folder = os.open(sockets, os.O_RDONLY)  # a path through it is short, as the path of a socket must be
    get_socket = wsgi.get_socket

    def listen_on(settings: dict) -> socket.socket:
        port = int(settings["bind_port"])
        if port not in PARTS.values():
            return get_socket(settings)
        path = f"/proc/self/fd/{folder}/{port}"
        Path(path).unlink(missing_ok=True)
        return listen(path, family=socket.AF_UNIX, backlog=4096)

    def connect(self: BufferedHTTPConnection) -> None:
        self._connected_time = time.time()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(f"/proc/self/fd/{folder}/{self.port}")

    wsgi.get_socket = listen_on
    BufferedHTTPConnection.connect = connect


def make_buckets(endpoint: str, running: dict[str, multiprocessing.Process]) -> None:
    """Create the buckets that do not exist yet, as soon as the store answers; keys from the environment."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        _check_alive(running)
        try:
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for name in BUCKETS:
                if name not in existing:
                    client.create_bucket(Bucket=name)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                found = f"the store did not answer within {SECONDS_TO_START} seconds"
                raise UserError(f"{found}: {error}") from error
            time.sleep(0.2)


def _check_alive(running: dict[str, multiprocessing.Process]) -> None:
    for name, process in running.items():
        if process.exitcode is not None:
            raise UserError(f"the store's {name} ended with code {process.exitcode}; its output is above")


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--folder", type=Path, required=True, help="where all data is stored")
    arguments.add_argument("--host", default="127.0.0.1", help="the address of the S3 interface")
    arguments.add_argument("--port", type=int, default=9000, help="its port")
    args = arguments.parse_args(argv)
    folder = args.folder.resolve()
    os.umask(0o077)
    with one_sentence("store"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if name not in os.environ:
                raise UserError(f"{name} is not set")
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        prepare(folder, args.host, args.port, *keys)
        raise SystemExit(run(folder, args.port))


if __name__ == "__main__":
    main()
