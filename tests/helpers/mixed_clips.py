"""Clips of all kinds in one manifest, for what must hold for each of them."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np

from vatt.data.synthetic import build_corpus


def write_mixed_clips(folder: Path, clips: int = 24) -> None:
    """FOLDER/clips.csv: with sound and captions, without captions, pictures without sound, one that is broken."""
    with open(build_corpus(folder / "corpus", clips, 0, progress=False)) as file:
        corpus = [(f"corpus/{row['path']}", row["caption"], row["split"]) for row in csv.DictReader(file)]
    rows = [(path, "" if i % 4 == 1 else caption, split) for i, (path, caption, split) in enumerate(corpus)]
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        with av.open(str(folder / f"still{number}.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.width = stream.height = 48
            stream.pix_fmt = "rgb24"
            for packet in [*stream.encode(av.VideoFrame.from_ndarray(noise)), *stream.encode()]:
                container.mux(packet)
        rows.append((f"still{number}.png", f"still number {number}", "train"))
    (folder / "broken.mp4").write_bytes((folder / corpus[0][0]).read_bytes()[:900])
    rows.append(("broken.mp4", "broken", "train"))
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])
