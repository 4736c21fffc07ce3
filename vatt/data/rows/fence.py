"""Where the clips of a manifest may lie: below its folder, and where VATT_ROOTS says (see `vatt.data.manifest`)."""

from __future__ import annotations

import os
from pathlib import Path

from ..clip import ManifestError
from ..shards.remote import is_address

ROOTS = "VATT_ROOTS"


class Fence:
    """Where the clips of a manifest may lie. `root`: the folder of the manifest."""

    def __init__(self, root: Path) -> None:
        self.root, self.allowed = root, os.environ.get(ROOTS)
        self.inside = os.path.join(root, "")
        roots = [root, *(Path(folder) for folder in (self.allowed or "").split(os.pathsep) if folder)]
        self.roots = [os.path.join(os.path.realpath(folder), "") for folder in roots]

    def locate(self, name: str, source: str) -> str:
        """The absolute path, or the address, that a row names. Raises `ManifestError` for one that is elsewhere."""
        if is_address(name):
            if self.allowed is not None:
                raise ManifestError(
                    f"{source}: {name} is an address, and {ROOTS} allows folders alone; take the row out, or unset "
                    f"{ROOTS} if you trust it"
                )
            return name
        file = os.path.abspath(os.path.join(self.root, name))
        self.check(name, file, source)
        return file

    def check(self, name: str, file: str, source: str) -> None:
        """Raises `ManifestError` for a clip that is elsewhere. `name`: as written, `file`: made absolute."""
        if self.allowed is not None:
            target = os.path.realpath(file)
            if not any(target.startswith(root) for root in self.roots):
                raise ManifestError(
                    f"{source}: {name} leads to {target}, outside of {self.root} and of what {ROOTS}={self.allowed} "
                    f"allows; take the row out, or add a folder to {ROOTS} if you trust it"
                )
        elif not os.path.isabs(name) and not file.startswith(self.inside):
            raise ManifestError(
                f"{source}: {name} leads out of {self.root}; write the absolute path if that is meant, or allow the "
                f"folder: {ROOTS}={os.path.dirname(file)}"
            )
