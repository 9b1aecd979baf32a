"""python -m flows.services.s3_server: an S3-compatible store in one folder, by OpenStack Swift.

Swift is four servers and an updater; only the first of them, the proxy, speaks S3 and checks the key. The
others listen on 127.0.0.1 and accept every request there, as Swift's do in any cluster. The keys come from
AWS_ACCESS_KEY_ID (account:user) and AWS_SECRET_ACCESS_KEY, so that no list of processes shows them.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from thousandwords.core.errors import UserError

BUCKETS = ("mlflow", "dvc")
PARTS = {"account": 1, "container": 2, "object": 3}  # each on the proxy's port plus this number
SECONDS_TO_START = 60
PIPELINE = "catch_errors gatekeeper healthcheck proxy-logging listing_formats bulk s3api tempauth copy slo dlo proxy-logging"


def ports(port: int) -> list[int]:
    """The ports of the proxy and of the servers behind it: ports(9000) -> [9000, 9001, 9002, 9003]"""
    return [port, *(port + offset for offset in PARTS.values())]


def configuration(
    folder: Path, host: str, port: int, access_key: str, secret_key: str, salt: str
) -> dict[str, str]:
    """Swift's configuration files, {file name: text}.

    `salt` goes into every path on disk and must never change.
    """
    account, _, user = access_key.partition(":")
    if not (account.isalnum() and user.isalnum()):
        raise UserError(
            f"AWS_ACCESS_KEY_ID is {access_key!r}; it must be account:user, letters and digits only"
        )
    common = f"swift_dir = {folder}\nuser = {_user()}\nworkers = 0\nlog_level = WARNING\nrecon_cache_path = {folder}\n"
    files = {
        "swift.conf": f"[swift-hash]\nswift_hash_path_suffix = {salt}\n[storage-policy:0]\nname = one\ndefault = yes\n",
        "proxy.conf": f"[DEFAULT]\nbind_ip = {host}\nbind_port = {port}\n{common}"
        f"[pipeline:main]\npipeline = {PIPELINE} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        + "".join(
            f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n"
            for name in _filters() - {"tempauth"}
        )
        + f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_{account}_{user} = {secret_key} .admin\n",
    }
    for part, offset in PARTS.items():
        files[f"{part}.conf"] = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port + offset}\n{common}"
            f"devices = {folder / 'devices'}\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {part}-server\n[app:{part}-server]\nuse = egg:swift#{part}\n"
        )
    files["object.conf"] += "[object-updater]\ninterval = 15\n"
    return files


def _filters() -> set[str]:
    return set(PIPELINE.split())


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def prepare(folder: Path, host: str, port: int, access_key: str, secret_key: str) -> None:
    """Write the configuration and the rings (Swift's map of objects to devices: here one device)."""
    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "ready").unlink(missing_ok=True)  # left by a killed store
    salt = folder / "salt"
    if not salt.is_file():
        _write(salt, secrets.token_hex(16))
    for name, text in configuration(folder, host, port, access_key, secret_key, salt.read_text()).items():
        _write(folder / name, text)
    for part, offset in PARTS.items():
        _write_ring(folder / f"{part}.ring.gz", port + offset)


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _write_ring(path: Path, port: int) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "device": "disk", "weight": 1.0}
    builder.add_dev({**device, "port": port, "replication_ip": "127.0.0.1", "replication_port": port})
    builder.rebalance(seed=0)
    builder.get_ring().save(str(path))


def run(folder: Path, port: int) -> int:
    """Run all of the store's processes until one of them ends or a signal comes; then end the others."""
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    running: dict[str, subprocess.Popen] = {}
    try:
        for name, command in _commands(folder).items():
            running[name] = subprocess.Popen([sys.executable, *command, "-v"])
        _wait_until_up(running, port)
        make_buckets(f"http://127.0.0.1:{port}")
        print("store: ready", flush=True)
        (folder / "ready").touch()
        while not (ended := _first_ended(running)):
            time.sleep(0.5)
        print(f"store: its {ended} server ended with code {running[ended].returncode}", file=sys.stderr)
        return 1
    finally:
        (folder / "ready").unlink(missing_ok=True)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _commands(folder: Path) -> dict[str, list[str]]:
    parts = {"proxy": "proxy", "account": "account", "container": "container", "object": "obj"}
    commands = {
        name: ["-m", f"swift.{module}.server", str(folder / f"{name}.conf")] for name, module in parts.items()
    }
    # unlike the servers, the updater reads swift.conf from /etc/swift, whatever its own file says
    updater = (
        f"from swift.common.utils import set_swift_dir; set_swift_dir({str(folder)!r});"
        "from swift.obj.updater import main; main()"
    )
    return {**commands, "updater": ["-c", updater, str(folder / "object.conf")]}


def _first_ended(running: dict[str, subprocess.Popen]) -> str | None:
    return next((name for name, process in running.items() if process.poll() is not None), None)


def _wait_until_up(running: dict[str, subprocess.Popen], port: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    waiting = ports(port)
    while waiting:
        if ended := _first_ended(running):
            raise UserError(
                f"the store's {ended} server ended with code {running[ended].returncode}; its output is above"
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"the store's server on port {waiting[0]} did not answer within {SECONDS_TO_START} seconds"
            )
        if _answers(waiting[0]):
            waiting.pop(0)
        else:
            time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5).close()
    except urllib.error.HTTPError:
        return True  # the servers behind the proxy have no such page, but they are up
    except OSError:
        return False
    return True


def make_buckets(endpoint: str) -> None:
    """Create the buckets of MLflow and DVC that do not exist yet; keys from the environment."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in existing:
            client.create_bucket(Bucket=name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where all data is stored")
    parser.add_argument("--host", default="127.0.0.1", help="the address of the S3 interface")
    parser.add_argument("--port", type=int, default=9000, help="its port; the three after it are used too")
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    os.umask(0o077)
    try:
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        prepare(folder, args.host, args.port, *keys)
        raise SystemExit(run(folder, args.port))
    except KeyError as missing:
        raise SystemExit(f"store: {missing.args[0]} is not set") from missing
    except UserError as error:
        raise SystemExit(f"store: {error}") from error


if __name__ == "__main__":
    main()
