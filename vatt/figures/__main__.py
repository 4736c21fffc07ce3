"""Looking at what was learned: `python -m vatt.figures tsne` and `activations` (Figures 2 and 4 of the paper).

`tsne` lays the pooled features of the vision tower out in two dimensions, a panel a model, the same clips in each.
`activations` shows what every node of every MLP gives, on average, before the residual is added, a panel a modality.
FILE.png is the figure, FILE.npz the arrays behind it, both readable without pickle.

Shapes: C clips, M models, D width, L layers, B batch, N tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..runtime.cli import exit_code
from ..runtime.lock import add_force_flag, owned
from .activations import activations
from .output import check_output
from .tsne import TSNE, panel_name, tsne

EXAMPLES = """examples:
  python -m vatt.figures tsne --model runs/mbs runs/ma_medium runs/scratch --data kinetics.csv --out figure2.png
  python -m vatt.figures tsne --model runs/tiny --data clips.csv --method pca --out pca.png     without scikit-learn
  python -m vatt.figures activations --model runs/ma_medium --data clips.csv --clips 64 --out figure4.png
Models are folders of runs (pre-trained or fine-tuned) or of converted checkpoints. `python -m vatt.figures tsne --help`
tells all of one command. Needs pip install -e '.[figures]'.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""
ACTIVATIONS = """arrays of FILE.npz: video, audio, text [L,D], those that the model has; row [C]; metadata: JSON
An activation is the output of a layer's MLP before the residual addition, averaged over a clip's tokens (AGG is one,
padding is none), then over clips: the first that have all of the model's modalities, with first window and caption."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m vatt.figures",
        epilog=EXAMPLES,
        formatter_class=raw,
        description="Draw what a model has learned: its features (Figure 2) or its activations (Figure 4).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="tsne|activations")
    tsne = commands.add_parser("tsne", epilog=TSNE, formatter_class=raw, help="features of the vision tower")
    activations = commands.add_parser(
        "activations", epilog=ACTIVATIONS, formatter_class=raw, help="mean MLP output of each node and layer"
    )
    tsne.add_argument("--model", type=Path, nargs="+", required=True, metavar="DIR", help="a panel each")
    activations.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a run or model")
    for command in (tsne, activations):
        add = command.add_argument
        add("--data", required=True, metavar="PATH", help="manifest CSV or folder of clips")
        add("--columns", metavar="NAME=COLUMN,...", default="", help="columns of --data that have other names")
        add("--out", type=Path, required=True, metavar="FILE", help="figure to write, .png; its arrays go beside it")
        add_force_flag(command)
        add("--split", metavar="NAME", help="only these rows of the manifest (default: all)")
        add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
        add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add = tsne.add_argument
    add("--names", nargs="+", metavar="NAME", help="titles of the panels (default: the folders' names)")
    add("--method", choices=("tsne", "pca"), default="tsne", help="pca does without scikit-learn (default tsne)")
    add("--classes", type=int, default=100, metavar="N", help="so many classes, drawn at random (default 100)")
    add("--per-class", type=int, default=50, metavar="N", help="at most so many clips of each (default 50)")
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: each model's own)")
    add("--perplexity", type=float, default=30.0, metavar="P", help="of t-SNE, at most a third of C (default 30)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw of classes and clips, and of t-SNE (default 0)")
    add("--resume", action="store_true", help="take what is in FILE.npz already")
    activations.add_argument("--clips", type=int, default=1, metavar="N", help="clips to average over (default 1)")
    args = parser.parse_args(argv)
    for name, least in (("classes", 2), ("per_class", 1), ("windows", 1), ("perplexity", 1), ("clips", 1)):
        value = getattr(args, name, None)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {value:g}")
    if args.command == "tsne":
        args.names = args.names or [panel_name(folder) for folder in args.model]
        if len(args.names) != len(args.model):
            parser.error(f"--names has {len(args.names)} titles for {len(args.model)} models; give one each")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def action() -> None:
        check_output(args.out, getattr(args, "method", ""), getattr(args, "resume", False))
        with owned(args.out, force=args.force):
            (tsne if args.command == "tsne" else activations)(args)

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
