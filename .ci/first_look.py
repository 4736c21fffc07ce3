"""Make what README shows first: a clip, its classes, a search hit, and the example with its output.

    make train && python .ci/first_look.py

The model is that of `make train`, the clips are held-out ones of its corpus. What it says is written to
docs/pictures/first_look.json, which the pictures and README's block are drawn from.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
from PIL import Image

import vatt
from vatt import predict
from vatt.checkpoints.model_folder import load_config
from vatt.data.clip import Clip
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus
from vatt.inference.strip import key_frames
from vatt.runtime.files import pyplot, write_atomically, write_figure
from vatt.runtime.forms import read_json
from vatt.runtime.provenance import environment

ROOT = Path(__file__).resolve().parents[1]
README, PICTURES = ROOT / "README.md", ROOT / "docs" / "pictures"
RECORD = PICTURES / "first_look.json"
MODEL = "runs/tiny"
SHOWN = (
    "green triangle",
    "blue square",
    "green ring",
    "white circle",
)  # in shapes.mp4, one after the other; the first one alone is triangle.mp4
TEXTS = ["a green triangle", "a blue square", "a green ring", "a white circle", "a red cross"]
QUERY = "a green ring"
MARKERS = ("<!-- first look: python .ci/first_look.py -->", "<!-- end of first look -->")


def block(record: dict[str, Any]) -> str:
    """Return README's first block of Python: three lines, and what they print."""
    texts = ", ".join(f'"{text}"' for text in record["texts"])
    ranked = ", ".join(f"('{text}', {cosine:.2f})" for text, cosine in record["ranked"])
    return f"""```python
import vatt

model = vatt.load("{MODEL}")
print(model.rank_texts("triangle.mp4", [{texts}]))
# [{ranked}]
```"""


def write_readme(record: dict[str, Any]) -> None:
    text = README.read_text(encoding="utf-8")
    first, last = (re.escape(marker) for marker in MARKERS)
    made = re.sub(rf"({first}\n).*?({last})", lambda it: f"{it[1]}{block(record)}\n{it[2]}", text, flags=re.DOTALL)
    write_atomically(README, made.encode())


def joined(clips: list[Clip], out: Path) -> None:
    """Write the pictures of `clips`, which have one size and rate, one after the other."""
    with av.open(str(out), "w") as sink:
        video: Any = None
        rate: Any = Fraction(1)
        number = 0
        for clip in clips:
            with av.open(str(clip.path)) as source:
                for frame in source.decode(video=0):
                    if video is None:
                        rate = source.streams.video[0].average_rate or Fraction(10)
                        video = sink.add_stream("libx264", rate=rate, options={"crf": "18"})
                        video.width, video.height, video.pix_fmt = frame.width, frame.height, "yuv420p"
                    frame.pts, frame.time_base = number, 1 / rate
                    frame.pict_type = av.video.frame.PictureType.NONE
                    sink.mux(video.encode(frame))
                    number += 1
        sink.mux(video.encode(None))


def draw_hits(hits: list[dict[str, Any]], query: str, out: Path) -> None:
    plt = pyplot()
    config = load_config(ROOT / MODEL)
    figure, panels = plt.subplots(1, len(hits), figsize=(1.9 * len(hits), 2.5), layout="constrained")
    for hit, panel in zip(hits, panels, strict=True):
        panel.imshow(key_frames(Path(hit["path"]), config, [0.5])[0])
        panel.set_title(f"{hit['rank']}. cosine {hit['cosine']:.2f}", fontsize="small")
        panel.axis("off")
    figure.suptitle(f'"{query}"', fontsize="medium")
    write_figure(figure, out)


def shrink(path: Path) -> None:
    """Write a PNG with 64 colours, a third of the bytes."""
    buffer = BytesIO()
    Image.open(path).convert("RGB").quantize(64).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def main() -> None:
    where, folder = environment(), ROOT / MODEL  # before the pictures differ from the commit
    model = vatt.load(folder)
    assert isinstance(model, vatt.VATT)
    PICTURES.mkdir(exist_ok=True)
    clips = read_manifest(build_corpus()).split("test")
    chosen = [next(c for c in clips if all(w in " ".join(c.captions) for w in name.split())) for name in SHOWN]
    with TemporaryDirectory() as place:
        clip = Path(place) / "shapes.mp4"
        joined(chosen, clip)
        ranked = model.rank_texts(chosen[0].path, TEXTS[:3])
        strip = PICTURES / "strip.png"
        zero_shot = [str(folder), str(clip), "--zero-shot", *TEXTS, "--every", "0.5", "--strip", str(strip)]
        assert predict.main(zero_shot) == 0
    index = vatt.SearchIndex(vatt.embed(model, clips), model)
    hits = index.search(QUERY, top=3)
    draw_hits(hits, QUERY, PICTURES / "search.png")
    shrink(strip)
    shrink(PICTURES / "search.png")
    result = read_json(folder / "result.json")
    record = {
        "environment": where,
        "model": {"environment": result["environment"], "steps": result["steps"], "retrieval": result["retrieval"]},
        "clip": chosen[0].name,
        "texts": TEXTS[:3],
        "ranked": ranked,
        "query": QUERY,
        "hits": [{"rank": h["rank"], "cosine": h["cosine"], "clip": Path(h["path"]).name} for h in hits],
    }
    write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    write_readme(record)


if __name__ == "__main__":
    main()
