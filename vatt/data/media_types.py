"""Which suffix is a video, a picture or a sound."""

from __future__ import annotations

MEDIA_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"),
        *(".m2ts", ".mts", ".flv", ".wmv", ".3gp", ".3g2", ".ogv", ".vob"),
    )
)


AUDIO = frozenset((".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff"))
IMAGE = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
