"""Pre-train on a folder of clips, see how retrieval went, and go on where a run was stopped.

    python examples/train_on_a_folder.py clips/ runs/mine --steps 2000
    python examples/train_on_a_folder.py clips/ runs/mine --resume

clips/dog.mp4 has its captions in clips/dog.txt, a line each. What else is given goes to `python -m vatt.train`, which
this calls; `--help` of that explains every flag.
"""

import argparse
import json
import sys
from pathlib import Path

from vatt import train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], add_help=False)
    parser.add_argument("clips")
    parser.add_argument("out", type=Path)
    args, rest = parser.parse_known_args(argv)

    # --fused: dropped tokens are never read, no attention or similarity matrix is stored.
    command = ["--fused", "--data", args.clips, "--out", str(args.out)]
    code = train.main(["--out", str(args.out), *rest] if "--resume" in rest else [*command, *rest])
    if code:
        return code  # the reason has been printed

    result = json.loads((args.out / "result.json").read_text())
    if result.get("retrieval") is None:
        print("no clip was held out; a manifest with split=test, or clips below test/, would be")
    else:
        for direction, scores in result["retrieval"].items():
            print(direction, {name: round(value, 3) for name, value in scores.items() if isinstance(value, float)})
    print(f"use it: vatt.load({str(args.out / 'model')!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
