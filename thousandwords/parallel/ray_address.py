"""Whether a Ray cluster answers at `engine.address`, without Ray, which would try for minutes."""

import os
import socket

from thousandwords.core.errors import UserError

CONNECT_SECONDS = 10.0


def check_address(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT; with "auto" at that of RAY_ADDRESS, if it is set."""
    host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise no_cluster(address) from error


def no_cluster(address: str) -> UserError:
    return UserError(
        f"no Ray cluster answers at engine.address {address!r}. Start one here: ray start --head, and "
        "join it from the other machines: ray start --address HOST:6379; or set engine.kind: local"
    )
