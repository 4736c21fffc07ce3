"""Where the clips of a manifest may lie: below its folder, and where VATT_ROOTS says (see `vatt.data.manifest`)."""

from __future__ import annotations

import os
from pathlib import Path

from ..clip import ManifestError

ROOTS = "VATT_ROOTS"


class Fence:
    """Where the clips of a manifest may lie. `root`: the folder of the manifest."""

    def __init__(self, root: Path) -> None:
        self.root, self.said = root, os.environ.get(ROOTS)
        self.inside = os.path.join(root, "")
        roots = [root, *(Path(folder) for folder in (self.said or "").split(os.pathsep) if folder)]
        self.roots = [os.path.join(os.path.realpath(folder), "") for folder in roots]

    def check(self, name: str, file: str, where: str) -> None:
        """Raises `ManifestError` for a clip that is elsewhere. `name`: as written, `file`: made absolute."""
        if self.said is not None:
            real = os.path.realpath(file)
            if not any(real.startswith(root) for root in self.roots):
                raise ManifestError(
                    f"{where}: {name} leads to {real}, outside of {self.root} and of what {ROOTS}={self.said} allows; "
                    f"take the row out, or add a folder to {ROOTS} if you trust it"
                )
        elif not os.path.isabs(name) and not file.startswith(self.inside):
            raise ManifestError(
                f"{where}: {name} leads out of {self.root}; write the absolute path if that is meant, or allow the "
                f"folder: {ROOTS}={os.path.dirname(file)}"
            )
