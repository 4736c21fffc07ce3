"""Remote tars, downloaded whole, once, to a folder below the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...runtime.files import cache_root, new_file
from ...runtime.progress import progress_bar
from ..clip import ManifestError
from .index import BLOCK, tar_entries

REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


def fetch(url: str) -> Path:
    """Return the local copy of a remote tar, downloaded if it is not there yet: under its name only when it is whole.

    Processes that want the same tar wait for the first one. All addresses but http(s) make the library run a shell
    command, and an address may come from a stranger's config.json: they need VATT_ALLOW_COMMANDS=1. Raises
    `ManifestError` when it cannot be had, `ConfigError` when it may not.
    """
    if not url.lower().startswith(("http:", "https:")) and os.environ.get("VATT_ALLOW_COMMANDS") != "1":
        raise ConfigError(f"{url}: reading it runs a command in a shell; if you trust it, set VATT_ALLOW_COMMANDS=1")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    last = re.sub(r"[^A-Za-z0-9_.-]+", "_", url.split("?")[0].rsplit("/", 1)[-1]).removesuffix(".tar")[-60:]
    tar = cache_root().absolute() / "shards" / f"{last}-{digest}.tar"
    if tar.is_file():
        return tar
    tar.parent.mkdir(parents=True, exist_ok=True)
    with open(tar.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.is_file():
            _download(url, tar)
    return tar


def _download(url: str, tar: Path) -> None:
    try:
        with new_file(tar) as file:
            with import_webdataset().gopen(url, "rb") as stream, progress_bar(0, f"downloading {tar.name}", "B") as bar:
                bar.unit_scale = True
                while block := stream.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            file.flush()
            for _ in tar_entries(Path(file.name)):
                pass
    except (OSError, ValueError) as error:
        raise ManifestError(f"{url}: cannot be downloaded ({error})") from error


def import_webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ConfigError(
            "addresses and patterns of tars need webdataset: pip install -e '.[webdataset]' in the project's folder; "
            "a tar or a folder of tars works without"
        ) from error
    return webdataset
