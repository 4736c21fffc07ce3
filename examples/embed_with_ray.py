"""Embed a large archive on many machines as a Ray Data job: actors hold the model, what fails is tried again.

python examples/embed_with_ray.py MODEL CLIPS OUT.parquet --actors 8     (pip install -e '.[ray,features]')

All three lie on a disk that all machines share. A part of the clips is a file in OUT.parts/ as soon as it is done: one
that is made twice is the same file, one that is there is not made again, one of bad clips alone stops nothing. OUT is
the table that `vatt embed` writes.
"""

import argparse
import sys
from pathlib import Path

import vatt
from vatt.checkpoints.fingerprints import weights_fingerprint
from vatt.data.clip import Manifest
from vatt.inference.features_file import assemble
from vatt.inference.npz import write_npz


class Embedder:
    """An actor. A call embeds the parts with these numbers."""

    def __init__(self, model: str, clips: str, parts: Path, size: int) -> None:
        self.model, self.clips, self.parts, self.size = vatt.load(model), vatt.read_manifest(clips), parts, size

    def __call__(self, batch: dict) -> dict:
        for number in batch["id"].tolist():
            if not (path := self.parts / f"{number:08d}.npz").exists():
                rows = self.clips[number * self.size : (number + 1) * self.size]
                made = vatt.embed(self.model, Manifest(rows, self.clips.root, self.clips.labels), max_bad_share=None)
                write_npz(path, made.arrays.items())
        return batch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Embed clips on many machines.")
    for name in ("model", "clips", "out"):
        parser.add_argument(name)
    parser.add_argument("--actors", type=int, default=2, help="processes that hold the model (default 2)")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor (default 0)")
    parser.add_argument("--size", type=int, default=256, help="clips a part (default 256)")
    args = parser.parse_args(argv)
    import ray

    (parts := Path(f"{args.out}.parts").absolute()).mkdir(parents=True, exist_ok=True)
    count = -(-len(vatt.read_manifest(args.clips)) // args.size)
    given = (str(Path(args.model).absolute()), str(Path(args.clips).absolute()), parts, args.size)
    options = {"num_gpus": args.gpus or None, "concurrency": args.actors}  # what fails is tried again by default
    numbers = ray.data.from_items([{"id": i} for i in range(count)], override_num_blocks=count)
    numbers.map_batches(Embedder, fn_constructor_args=given, batch_size=1, **options).take_all()
    model = vatt.load(args.model)
    about = {"model": given[0], "windows": model.settings.eval_windows, "weights_sha256": weights_fingerprint(model)}
    print(counts := assemble([parts / f"{number:08d}.npz" for number in range(count)], Path(args.out), about))
    return 0 if counts["clips"] else 1


if __name__ == "__main__":
    sys.exit(main())
