"""What the folders that clips lie in say of them: the split, the class, both or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}


def labels_and_splits(files: Sequence[PurePath]) -> list[tuple[str | None, str | None]]:
    """Return class and split of each file, by paths relative to the corpus; None where the folders say none.

    A split is named by the first or the last folder of all files alike (train/CLASS/a.mp4, CLASS/train/a.mp4). Classes
    are told by folders when, besides, each file lies in exactly one and there are at least two of them.
    """
    folders = [file.parts[:-1] for file in files]
    splits: list[str | None] = [None] * len(files)
    for end in (0, -1):
        if folders and all(parts and parts[end].lower() in SPLITS for parts in folders):
            splits = [SPLITS[parts[end].lower()] for parts in folders]
            folders = [parts[1:] if end == 0 else parts[:-1] for parts in folders]
            break
    classes = all(len(parts) == 1 for parts in folders) and len(set(folders)) > 1
    return [(parts[0] if classes else None, split) for parts, split in zip(folders, splits, strict=True)]
