"""Teach a pre-trained model to name sounds, then ask it about one.

    python examples/finetune_sound.py sounds/ runs/mine/model runs/sounds --ask bark.wav

sounds/train/CLASS/*.wav and sounds/test/CLASS/*.wav: folders name splits and classes. In place of the model, "none"
starts from scratch. What else is given goes to `python -m vatt.finetune`.
"""

import argparse
import sys
from pathlib import Path

import torch

import vatt
from vatt import finetune
from vatt.data.decoding.audio import read_sound_windows
from vatt.data.manifest import read_manifest


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], add_help=False)
    parser.add_argument("sounds")
    parser.add_argument("init")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ask", type=Path)
    args, rest = parser.parse_known_args(argv)

    # Softmax: one class a sound. The release's default for sound, sigmoid, is for several at once.
    command = ["--task", "audio", "--loss", "softmax", "--fused", "--data", args.sounds, "--init", args.init]
    if code := finetune.main([*command, "--out", str(args.out), *rest]):
        return code
    if args.ask is None:
        return 0

    model, config = vatt.load(args.out), vatt.load_config(args.out)  # a vatt.Classifier
    names = read_manifest(args.sounds).labels  # in the order of the outputs
    # Four windows of the sound, float32 [4, S]; a file is given up after `decode_seconds`.
    windows = read_sound_windows(args.ask, config.model.audio, 4, config.data.decode_seconds)
    with torch.inference_mode():
        shares = model(torch.from_numpy(windows), views=4)[0].softmax(-1)
    for share, name in sorted(zip(shares.tolist(), names, strict=True), reverse=True)[:5]:
        print(f"{share:.3f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
