"""The console command `vatt`: `vatt train ...` is `python -m vatt.train ...`, and so for every command."""

from __future__ import annotations

import runpy
import sys

from . import __version__

# What a user types, the module that answers, and what it does. Modules are named, not imported: no command loads
# what another needs.
COMMANDS = {
    "train": ("vatt.train", "pre-train on video, audio and text; without --data on generated clips"),
    "finetune": ("vatt.finetune", "train a classifier of videos, sounds or images from a pre-trained model"),
    "evaluate": ("vatt.evaluate", "score a model: classification, linear probe, zero-shot retrieval"),
    "predict": ("vatt.predict", "say what videos, pictures and sounds show, by a fine-tuned model or by words"),
    "embed": ("vatt.embed", "write the features of many clips to a file"),
    "search": ("vatt.search", "find clips by words, a sound or a video"),
    "sources": ("vatt.data.sources", "turn published annotations into a manifest of the clips you have"),
    "check": ("vatt.data.check", "say what a corpus is and name every problem of it, without training"),
    "transcode": ("vatt.data.transcode", "encode a corpus anew, small and fast to decode"),
    "figures": ("vatt.figures", "draw features (t-SNE) and activations, Figures 2 and 4 of the paper"),
    "card": ("vatt.card", "write a model card, ready for the Hugging Face hub"),
    "recipes": ("vatt.recipes", "print the commands behind the paper's tables"),
    "official": ("vatt.official", "inspect, convert and verify the official TensorFlow checkpoints"),
}
WIDTH = max(map(len, COMMANDS))
HELP = "\n".join(
    [
        "usage: vatt COMMAND ...",
        "",
        "Video-audio-text transformers: train, fine-tune, evaluate and use them.",
        "",
        *(f"  {name:{WIDTH}}  {purpose}" for name, (_, purpose) in COMMANDS.items()),
        "",
        "  vatt COMMAND --help    the flags of a command, with examples",
        "  vatt --version         the version",
        "",
        "To begin:",
        "  vatt train --fused                                   a small model on generated clips, minutes on a CPU",
        "  vatt train --fused --data clips/ --out runs/mine     your own clips; captions from a .txt beside each",
        "  vatt embed --model runs/mine/model --data clips/ --out features.npz",
        '  vatt search --index features.npz "a dog barks"',
        "",
        "On several GPUs: torchrun --nproc-per-node=8 -m vatt train ...",
    ]
)


def main() -> int:
    """Hand `sys.argv` over to the command it names; 0 after help, 2 for a command that is none."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if name in ("-V", "--version"):
        print(f"vatt {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r} is no command of vatt; there are {', '.join(COMMANDS)} (vatt --help)", file=sys.stderr)
        return 2
    module = COMMANDS[name][0]
    sys.argv[1:] = rest
    # As `python -m` does it: worker processes look for the main module under the command's own name.
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
