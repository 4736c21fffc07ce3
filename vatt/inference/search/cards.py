"""What a search found, as HTML to look at: a card for each moment with its picture and a player that starts there."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np

from ...data.decoding.container import BadClip
from ...data.decoding.span import decode_span
from ...data.media_types import IMAGE
from ...data.shards.index import tar_of
from ...runtime.forms import printable

SIDE = 180  # pixels of the shorter side of a picture
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --ground: #f6f7f9; --card: #fff; --line: #d5dae0;
  --mark: #0b62c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebef; --soft: #a3adb8; --ground: #14171b; --card: #1e2329; --line: #363d46; --mark: #7ab7ff; } }
body { margin: 0; padding: 1rem; background: var(--ground); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.2rem; margin: .5rem 0; overflow-wrap: anywhere; }
.hits { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.hit { background: var(--card); color: var(--ink); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.hit video, .hit img, .hit .none { display: block; width: 100%; aspect-ratio: 16 / 9; object-fit: contain;
  background: #000; }
.hit .none { display: grid; place-items: center; color: #c9d1d9; }
.hit .about { padding: .6rem .8rem; overflow-wrap: anywhere; }
.hit .when { float: right; color: var(--mark); font-variant-numeric: tabular-nums; margin-left: .5rem; }
.hit .soft { color: var(--soft); font-size: .87rem; }
.hit p { margin: .35rem 0 0; }
.hit a { color: var(--mark); }
.warning { color: var(--soft); }
"""


def key_frame(path: str, start: float, end: float | None, limit: float = 10.0) -> bytes:
    """Return a JPEG of the middle of a moment. Raises `BadClip`."""
    at = start if end is None else (start + end) / 2
    place = Path(path)
    span = decode_span(
        place, start=at, fps=1.0, frames=1, rate=8000, short_side=SIDE, time_limit=limit, read=("video",)
    )
    assert span.video is not None
    frame = span.video[0]
    frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.shape[1], frame.shape[0], "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1), {"qmin": "4", "qmax": "4"}
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


def clock(seconds: float) -> str:
    """Return a time as players show it: 1:02:03, or 2:03.5 where it is not a whole second."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600
    said = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{said}" if hours else f"{minutes}:{said}"


def card(hit: Mapping[str, Any], picture: str, source: str, name_of_file: str, more: str = "") -> str:
    """Return the HTML of one result.

    Args:
        hit: as `rank` returns it.
        picture: address of its key frame, "" without one.
        source: address of the file, which a player is given with the second to start at.
        name_of_file: what the card calls it.
        more: HTML below what is said of it.
    """
    path, start, end = hit["path"], hit["start"], hit["end"]
    name = escape(printable(Path(path).name), quote=True)
    if hit["gone"]:
        seen = '<div class="none">the file is gone</div>'
    elif Path(path).suffix.lower() in IMAGE or tar_of(Path(path)):
        seen = f'<img src="{picture}" alt="{name}" loading="lazy">'
    else:
        poster = f' poster="{picture}"' if picture else ""
        address = escape(f"{source}#t={start:g}", quote=True)
        seen = f'<video controls preload="none"{poster} src="{address}" title="{name}"></video>'
    when = clock(start) if end is None else f"{clock(start)} - {clock(end)}"
    more_of_them = f" (+{len(hit['captions']) - 1})" if len(hit["captions"]) > 1 else ""
    said = "".join(f"<p>{escape(printable(caption))}{more_of_them}</p>" for caption in hit["captions"][:1])
    label = f" · {escape(printable(hit['label']))}" if hit["label"] else ""
    return (
        f'<article class="hit">{seen}<div class="about"><span class="when">{when}</span>'
        f"<strong>{hit['rank']}. {name}</strong>{said}"
        f'<p class="soft">score {hit["cosine"]:.3f}{label}<br>{escape(printable(name_of_file))}</p>{more}'
        "</div></article>"
    )


def data_address(hit: Mapping[str, Any]) -> str:
    """Return the key frame of a result as a data address; "" where there is none."""
    try:
        picture = b"" if hit["gone"] else key_frame(hit["path"], hit["start"], hit["end"])
    except BadClip:
        return ""  # damaged since it was indexed: the card is shown without
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else ""


def search_page(answers: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return a page of its own, with all pictures in it, for a file in `folder`, from which players find the clips.

    Args:
        answers: kind, query, warnings and results, as `SearchIndex.answer` returns them.
        folder: where the page will lie.
    """
    parts = []
    for answer in answers:
        parts.append(f"<h1>{escape(answer['kind'])}: {escape(printable(answer['query']))}</h1>")
        parts += [f'<p class="warning">{escape(printable(line))}</p>' for line in answer["warnings"]]
        cards = []
        for hit in answer["results"]:
            path = os.path.relpath(hit["path"], folder.absolute())
            cards.append(card(hit, data_address(hit), quote(path, errors="surrogateescape"), path))
        parts.append(f'<main class="hits">{"".join(cards) or "nothing was found"}</main>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vatt search</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
