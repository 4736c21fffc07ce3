"""The towers of a preset in float32 on a CPU, by the code of another commit, which PYTHONPATH names.

Arguments: preset, layers (0: its own), a file of inputs. Each line of JSON that comes is answered by one.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch


def first_of(*names: str) -> Any:
    """Return the first of these modules that the other commit has: what is in them was elsewhere once."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(" or ".join(names))


@torch.inference_mode()
def main(argv: Sequence[str]) -> None:
    name, layers, inputs = argv[0], int(argv[1]), torch.load(argv[2], weights_only=True)
    config = first_of("vatt.config.presets", "vatt.presets").preset(name).model
    if layers:
        encoders = {key: replace(getattr(config, key), layers=layers) for key in ("video_encoder", "audio_encoder")}
        config = replace(config, **encoders)
    torch.manual_seed(0)
    ops = importlib.import_module("vatt.ops").choose(True, "cpu")
    model = importlib.import_module("vatt.model.vatt").VATT(config, ops).eval()
    for line in sys.stdin:
        job = json.loads(line)
        features = model.backbone.features(job["modality"], inputs[job["modality"]][: job["windows"]])[:, 0]
        print(json.dumps(features.tolist() if job["values"] else []), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
