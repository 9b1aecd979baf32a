"""Host headers: split into host and port, and compared with the origin of a page."""

from __future__ import annotations

import ipaddress
import re

from thousandwords.core.errors import UserError

HOST = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)


def host_and_port(text: str) -> tuple[str, int | None] | None:
    """ "LOCALHOST.:80" -> ("localhost", 80), "[0:0::1]" -> ("::1", None), "localhost@evil" -> None."""
    match = HOST.fullmatch(text)
    if not match:
        return None
    port = int(match["port"]) if match["port"] else None
    try:
        name = str(ipaddress.IPv6Address(match["six"])) if match["six"] else match["name"].lower()
    except ValueError:
        return None
    return (name, port) if port is None or 1 <= port <= 65535 else None


def allowed_name(host: str) -> str:
    """A host as `host_and_port` gives it: "Studio.Example" -> "studio.example", "[::1]" or "::1" -> "::1"."""
    parsed = host_and_port(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    if parsed is None or parsed[1] is not None:
        raise UserError(
            f"allowed host {host!r} is not a name or an address; "
            "give it like studio.example, without scheme or port"
        )
    return parsed[0]


def is_origin_of(origin: str, hosts: list[str]) -> bool:
    """Whether a page of `origin` is from the only host: "http://localhost", ["localhost:80"] -> True."""
    scheme, _, rest = origin.partition("://")
    default_port = {"http": 80, "https": 443}.get(scheme)
    page_host, request_host = host_and_port(rest), host_and_port(hosts[0]) if len(hosts) == 1 else None
    if not (default_port and page_host and request_host):
        return False
    return (page_host[0], page_host[1] or default_port) == (request_host[0], request_host[1] or default_port)
