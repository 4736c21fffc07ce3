"""Teach a pre-trained model to name sounds, then ask it about one.

    python examples/finetune_sound.py sounds/ runs/mine/model runs/sounds --ask bark.wav

sounds/train/CLASS/*.wav and sounds/test/CLASS/*.wav: folders name splits and classes. In place of the model, "none"
starts from scratch. What else is given goes to `python -m vatt.finetune`.
"""

import argparse
import sys
from pathlib import Path

import vatt
from vatt import finetune


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

    model = vatt.load(args.out)  # a vatt.Classifier
    for name, share in model.predict(args.ask):  # the five best classes
        print(f"{share:.3f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
