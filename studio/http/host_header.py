"""Names of hosts as requests give them: a host and a port taken apart, and whether a page's origin is the host that served it."""
from __future__ import annotations

import ipaddress
import re

from thousandwords.errors import UserError

HOST = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)


def host_and_port(text: str) -> tuple[str, int | None] | None:
    """"LOCALHOST.:80" -> ("localhost", 80), "[0:0::1]" -> ("::1", None); None for what is no host, as "localhost@evil"."""
    found = HOST.fullmatch(text)
    if not found:
        return None
    port = int(found["port"]) if found["port"] else None
    try:
        name = str(ipaddress.IPv6Address(found["six"])) if found["six"] else found["name"].lower()
    except ValueError:
        return None
    return (name, port) if port is None or 1 <= port <= 65535 else None


def allowed_name(host: str) -> str:
    """A host as `host_and_port` names it: "Studio.Example" -> "studio.example", "[::1]" or "::1" -> "::1"."""
    found = host_and_port(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    if found is None or found[1] is not None:
        raise UserError(f"allowed host {host!r} is not a name or an address; give it like studio.example, without scheme or port")
    return found[0]


def is_origin_of(origin: str, hosts: list[str]) -> bool:
    """Whether a page of `origin` was served by the one host in `hosts`: "http://localhost" and "localhost:80" -> True."""
    scheme, _, rest = origin.partition("://")
    usual = {"http": 80, "https": 443}.get(scheme)
    theirs, ours = host_and_port(rest), host_and_port(hosts[0]) if len(hosts) == 1 else None
    if not (usual and theirs and ours):
        return False
    return (theirs[0], theirs[1] or usual) == (ours[0], ours[1] or usual)
