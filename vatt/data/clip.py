"""A row of a manifest, and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from ..errors import UsageError

CAPTION_SEPARATOR = " | "
DEFAULT_SPLIT = "train"
MAX_TEXT = 2**20  # bytes of captions beside a clip


class ManifestError(UsageError, ValueError):
    """A manifest that cannot be read. The message names the file, the line and the way out."""


@dataclass(frozen=True)
class Clip:
    """One row. `index`: position in the whole manifest, also after `split`. `path`: absolute; `name`: as written.

    `start` and `end` are seconds from the first frame of the file; `end` None is the end of the file.
    """

    index: int
    path: Path
    name: str
    start: float = 0.0
    end: float | None = None
    captions: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = DEFAULT_SPLIT

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that `label` names: none, one, or several separated as captions are."""
        return split_captions(self.label or "")


@dataclass(frozen=True)
class Manifest(Sequence[Clip]):
    """Clips in file order. `labels` are sorted; their positions are the class ids, the same in every split.

    `notes`: what was read otherwise than its author may think, or not at all, a sentence each.
    """

    clips: tuple[Clip, ...]
    root: Path
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        return self.clips[index]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have clips, sorted."""
        return tuple(sorted({clip.split for clip in self.clips if clip.split is not None}))

    @property
    def label_ids(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    def split(self, name: str) -> Manifest:
        """Return clips of one split (none when it has no clips), with their indices and class ids unchanged."""
        return Manifest(tuple(clip for clip in self.clips if clip.split == name), self.root, self.labels, self.notes)

    def one_clip_a_span(self) -> Manifest:
        """Return rows of the same span of the same file as one clip, at the place of the first, with the captions of
        all.
        """
        rows: dict[tuple[Path, float, float | None], list[Clip]] = {}
        for clip in self.clips:
            rows.setdefault((clip.path, clip.start, clip.end), []).append(clip)
        merged = (
            same[0] if len(same) == 1 else replace(same[0], captions=tuple(c for clip in same for c in clip.captions))
            for same in rows.values()
        )
        return Manifest(tuple(merged), self.root, self.labels, self.notes)


def split_captions(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(CAPTION_SEPARATOR) if part.strip())
