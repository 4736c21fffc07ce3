"""Decodes windows with another checkout of this project, whose root is the argument, as lines of JSON ask for them."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path


def main(root: str) -> None:
    sys.path.insert(0, root)
    try:
        module = importlib.import_module("vatt.data.decoding.span")
    except ImportError:  # before decoding became a folder
        module = importlib.import_module("vatt.data.decode")
    for line in sys.stdin:
        job = json.loads(line)
        path, digest = Path(job.pop("path")), job.pop("digest")
        video = module.decode_span(path, read=("video",), **job).video
        print(json.dumps(hashlib.sha256(video).hexdigest() if digest else None), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
