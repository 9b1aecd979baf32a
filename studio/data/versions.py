"""Which packages can be drawn from: models/package, and the versions of the registry, each in a verified folder of its own.

A request names a version and is answered by it whole: an alias that is moved meanwhile moves only requests to come.
"""
from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thousandwords.errors import UserError
from thousandwords.files import MANIFEST, read_manifest

if TYPE_CHECKING:
    from flows._versions import Known

log = logging.getLogger("studio")

PACKAGE = "package"
FRESH = 2.0  # seconds for which the registry's answer is taken as it was
PAUSE = 30.0  # seconds for which a registry that did not answer is not asked again: whoever asks for a picture waits for it
BRIEFLY = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # MLflow's own are minutes
SHOWN = 50  # the newest versions


@dataclass(frozen=True)
class Version:
    """One package that can be drawn from."""

    id: str  # "package", or a number of the registry
    label: str
    fingerprint: str  # sha256 of the package's manifest
    aliases: tuple[str, ...] = ()
    note: str = ""


class Versions:
    """What there is, looked up where it is: a folder, and a registry if there is one. Slow at times; used from any thread."""

    def __init__(self, root: Path, package: Path, wanted: str | None = None) -> None:
        self.root, self.package, self.wanted = Path(root), Path(package), wanted
        self._lock, self._fetching = threading.Lock(), threading.Lock()  # two: a fetch is long, and others ask meanwhile
        self._seen: tuple[float, list[Version]] = (float("-inf"), [])  # until when, and what
        self._folders: dict[str, str] = {}

    def all(self) -> list[Version]:
        """models/package first, then the registry's, newest first. A registry that does not answer has none."""
        with self._lock:
            if time.monotonic() > self._seen[0]:
                self._seen = self._registered()
            return self._own() + self._seen[1]

    def default(self) -> Version:
        """The version that was named at the start, else the champion, else models/package. Raises UserError."""
        if self.wanted is not None:
            return self.find(self.wanted)
        known = self.all()
        if not known:
            raise UserError(f"there is nothing to draw with: no package at {self.package}, none in the registry. Run: make run")
        return next((one for one in known if "champion" in one.aliases), known[0])

    def find(self, wanted: str | None) -> Version:
        """A version by its id or an alias; None: the default one. Raises UserError."""
        if wanted is None:
            return self.default()
        known = self.all()
        for one in known:
            if wanted == one.id or wanted in one.aliases:
                return one
        names = ", ".join(name for one in known for name in (one.id, *one.aliases)) or "none at all"
        raise UserError(f"there is no version {wanted!r}; there is {names}. Register one with: make register")

    def drawn_by(self, fingerprint: str) -> Version:
        """The version with that package. Raises UserError."""
        for one in self.all():
            if one.fingerprint == fingerprint:
                return one
        raise UserError(f"this picture was drawn by the package {fingerprint[:12]}, which is neither {self.package} nor in the "
                        "registry. Open the studio on that package, with --package")

    def folder(self, version: Version) -> str:
        """Where its package lies, fetched and verified where need be; slow the first time. Raises UserError."""
        if version.id == PACKAGE:
            return str(self.package)
        with self._fetching:
            if version.id not in self._folders:
                from flows import registry  # late: it loads MLflow, which a laptop without a registry does without

                self._folders[version.id] = str(registry.fetch(version.id, self.root / registry.FETCHED, self.root))
            return self._folders[version.id]

    def _own(self) -> list[Version]:
        """models/package, as it is on disk now."""
        if not (self.package / MANIFEST).is_file():
            return []
        fingerprint = read_manifest(self.package, verify=False, mend="dvc repro package_model")["sha256"]
        return [Version(PACKAGE, str(self.package), fingerprint, note="trained here")]

    def _registered(self) -> tuple[float, list[Version]]:
        """The registry's versions, and until when they are taken as they are."""
        if not (os.environ.get("MLFLOW_TRACKING_URI") or (self.root / ".mlflow" / "mlflow.db").is_file()):
            return time.monotonic() + FRESH, []
        from flows import registry

        for name, value in BRIEFLY.items():
            os.environ.setdefault(name, value)
        try:
            return time.monotonic() + FRESH, [_registered_version(one) for one in registry.listed(self.root)][:SHOWN]
        except UserError as error:  # the studio works without a registry
            log.warning("no versions of the registry are shown: %s", error)
            return time.monotonic() + PAUSE, []


def _registered_version(known: Known) -> Version:
    note = f"{known.soundness}, commit {known.commit[:8]}"
    return Version(known.number, f"version {known.number}", known.package, known.aliases, note)
