"""python -m flows.services start [--team] | stop | status | env | remote: the servers, without docker.

MLflow and Prefect with SQLite; with --team, PostgreSQL and an S3 store under them. With passwords, on 127.0.0.1
only; everything is in .servers/. SERVERS_FOLDER and SERVERS_POSTGRES_PORT, _S3_, _MLFLOW_ and _PREFECT_PORT change that.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from flows.command_line import one_sentence, parser
from flows.services import specs
from flows.services.commands import export_lines, start, status, stop

REMOTE = "servers"  # the name of the team's store among DVC's remotes


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=("start", "stop", "status", "env", "remote"))
    arguments.add_argument("--team", action="store_true", help="with PostgreSQL and an S3 store")
    options = arguments.parse_args(argv)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped start ends what it has started
    with one_sentence("servers"):
        settings = specs.read_settings(dict(os.environ))
        if options.team:
            settings = replace(settings, is_team=True)
        if options.what == "status":
            raise SystemExit(0 if status(settings) else 1)
        if options.what == "stop":
            stop(settings)
            return
        if options.what == "start":
            start(settings)
        passwords = specs.read_passwords(settings.folder)
        if options.what == "env":
            print(export_lines(specs.client_environment(settings, passwords)))
        elif options.what == "remote" or (settings.is_team and Path(".dvc").is_dir()):
            from dvc.config import Config  # late: it takes a second

            # git ignores this file, and only its owner reads it
            config = Config(".dvc", validate=False)
            with config.edit("local") as local:
                local.setdefault("remote", {})[REMOTE] = specs.dvc_remote(settings, passwords)
            Path(".dvc/config.local").chmod(0o600)
            print(f"servers: dvc push -r {REMOTE} goes to the store")
        if options.what == "start":
            print("servers: flows, workers and registry of this folder use them from now on; others after")
            print('         eval "$(python -m flows.services env)"')


if __name__ == "__main__":
    main()
