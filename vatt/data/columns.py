"""Columns of a manifest, and names that come near theirs: what is meant is said by `--columns`, and never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ConfigError

COLUMNS = ("path", "start", "end", "caption", "label", "split")  # that are written
READ = (*COLUMNS, "narration")
KEYS = ("path", "file")
NEAR = {
    "path": (
        *("filepath", "file_path", "filename", "file_name", "video_path", "videopath", "audio_path", "image_path"),
        *("video", "audio", "image", "clip", "media", "video_file", "audio_file", "name"),
    ),
    "start": ("start_time", "time_start", "start_seconds", "start_sec", "start_s", "t_start", "begin"),
    "end": ("end_time", "time_end", "end_seconds", "end_sec", "end_s", "t_end", "stop"),
    "caption": ("captions", "title", "text", "texts", "sentence", "sentences", "description", "transcript"),
    "label": ("labels", "class", "classes", "class_name", "category", "categories", "target", "tag", "tags"),
    "split": ("subset", "partition", "fold", "set"),
}


def parse_columns(text: str) -> dict[str, str]:
    """Return {column of a manifest: column of the file} of `caption=title,path=filepath`; "" says that none is meant.

    Raises:
        ConfigError: `text` is no such list.
    """
    chosen: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, mark, column = (piece.strip().lower() for piece in part.partition("="))
        if not mark or name not in READ or (name == "path" and not column):
            raise ConfigError(f"--columns takes NAME=COLUMN,... with a NAME of {', '.join(READ)}; got {part!r}")
        chosen[name] = column
    return chosen


def keys_of(chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Return names that the column with file names may have, near ones included: they tell how a table is divided."""
    return (*filter(None, [chosen.get("path")]), *KEYS, *NEAR["path"])


def places(names: Sequence[str], chosen: Mapping[str, str], source: str) -> dict[str, int]:
    """Return the position of each column that there is.

    Raises:
        ConfigError: a column of `chosen` is not there.
        ValueError: none or two of a name; the message says of which and what was found.
    """
    positions = {}
    for name in READ:
        asked = chosen.get(name)
        if asked == "":
            continue
        if asked is not None and asked not in names:
            raise ConfigError(f"{source}: --columns {name}={asked}, but the columns are {', '.join(names)}")
        column = asked or next((key for key in (KEYS if name == "path" else (name,)) if key in names), None)
        if column is None:
            continue
        if names.count(column) > 1:
            raise ValueError(f"{source}: two columns `{column}`; keep one, or rename the other")
        positions[name] = names.index(column)
    if "caption" in positions and "narration" in positions:
        raise ValueError(f"{source}: `narration` and `caption` are two ways to say what is in a clip; keep one of them")
    if "path" not in positions:
        near = _near("path", names)
        way_out = f"; --columns path={near[0]} takes that one" if near else ""
        raise ValueError(f"{source}: no column `path` (or `file`); found: {', '.join(names)}{way_out}")
    return positions


def unread(names: Sequence[str], chosen: Mapping[str, str], positions: Mapping[str, int]) -> list[str]:
    """Return a sentence about each column that is not there while one of a near name is."""
    used = {names[position] for position in positions.values()}
    remarks = []
    for name in COLUMNS:
        near = [column for column in _near(name, names) if column not in used]
        if name not in positions and name not in chosen and near:
            remarks.append(
                f"no column `{name}`, and `{'`, `'.join(near)}` is not read: --columns {name}={near[0]} reads it, "
                f"--columns {name}= says that none is meant"
            )
    return remarks


def _near(name: str, names: Sequence[str]) -> list[str]:
    return [column for column in names if column.replace("-", "_").replace(" ", "_") in NEAR[name]]
