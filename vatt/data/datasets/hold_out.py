"""A share of the files of a corpus without held-out rows, kept out of training by their names alone."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import replace

from ...config.data import DataConfig
from ...errors import ConfigError
from ..clip import Clip, Manifest


def hold_out(manifest: Manifest, data: DataConfig) -> Manifest:
    """Return `manifest` with about the share `data.hold_out` of its training files in the split for tests.

    A file is held out by a hash of its path below the corpus: the same ones on every machine, and those that are there
    stay where they are when others are added. All rows of a file go together. At least one file is held out, and one
    is left.

    Raises:
        ConfigError: there are held-out rows already, or no two files to divide.
    """
    share, train, test = data.hold_out, data.train_split, data.test_split
    if not share:
        return manifest
    if any(clip.split == test for clip in manifest):
        raise ConfigError(
            f"{manifest.root} has rows of split {test!r}, which are held out already; leave --hold-out out"
        )
    places = {clip.path: _place(clip, manifest) for clip in manifest if clip.split == train}
    if len(places) < 2:
        raise ConfigError(f"{manifest.root}: --hold-out divides files of split {train!r}, and there are {len(places)}")
    ordered = sorted(places, key=places.__getitem__)
    count = sum(place < share for place in places.values())
    held = set(ordered[: min(max(count, 1), len(ordered) - 1)])
    clips = tuple(replace(clip, split=test) if clip.path in held and clip.split == train else clip for clip in manifest)
    return replace(manifest, clips=clips)


def nothing_held_out(data: DataConfig) -> str:
    """Say that no rows are there to score, and the way out."""
    return f"no rows of split {data.test_split!r}, so nothing is held out; a new run with --hold-out 0.1 keeps a tenth"


def _place(clip: Clip, manifest: Manifest) -> float:
    """Return where in [0, 1) the name of a file lies."""
    inside = clip.path.is_relative_to(manifest.root)
    name = clip.path.relative_to(manifest.root).as_posix() if inside else clip.name
    # The same letters may be written in either form of Unicode; a name need not be text at all.
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
