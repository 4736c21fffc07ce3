"""The paper's tables, with what was measured here beside its numbers, never in their place.

A number counts as measured only when it comes from a result.json of the recipe's own model, input size and drop rate
(`python -m vatt.recipes NAME` prints what makes it); of everything else the tables say that it was not measured.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import cli
from harness import report as harness
from harness.pages import number, table
from harness.report import ReportError

from vatt.config.finetuning import FinetuneConfig
from vatt.config.presets import preset
from vatt.config.serialization import to_dict
from vatt.errors import ConfigError
from vatt.recipes.__main__ import recipe, settings
from vatt.recipes.rows import DATASETS, DROPPED, RECIPES, Recipe
from vatt.runtime.files import write_atomically

EXAMPLES = """examples:
  python bench/paper_tables.py                                            the paper's numbers, none measured
  python bench/paper_tables.py k400-medium=runs/k400-medium/result.json   with one of yours
  python bench/paper_tables.py runs/*/result.json                         recipes by the names of their folders
  python bench/paper_tables.py --out tables.md

Results in DIR/<machine>/recipes/NAME.json (--reports DIR, default reports/ here) are read too.
exit codes: 0 done, 1 a result cannot be read or is not the recipe's, 2 wrong usage."""
MISSING = "not measured (no data)"
# What others had, as the paper prints it: top-1 / top-5 on Kinetics-400, 600 and Moments in Time, inference TFLOPs.
VIDEO = """
I3D | 71.1 / 89.3 | 71.9 / 90.1 | 29.5 / 56.1 | –
R(2+1)D | 72.0 / 90.0 | – | – | 17.5
bLVNet | 73.5 / 91.2 | – | 31.4 / 59.3 | 0.84
S3D-G | 74.7 / 93.4 | – | – | –
Oct-I3D+NL | 75.7 / – | 76.0 / – | – | 0.84
D3D | 75.9 / – | 77.9 / – | – | –
I3D+NL | 77.7 / 93.3 | – | – | 10.8
ip-CSN-152 | 77.8 / 92.8 | – | – | 3.3
AttentionNAS | – | 79.8 / 94.4 | 32.5 / 60.3 | 1.0
AssembleNet-101 | – | – | 34.3 / 62.7 | –
MoViNet-A5 | 78.2 / – | 82.7 / – | 39.1 / – | 0.29
LGD-3D-101 | 79.4 / 94.4 | 81.5 / 95.6 | – | –
SlowFast-R101-NL | 79.8 / 93.9 | 81.8 / 95.1 | – | 7.0
X3D-XL | 79.1 / 93.9 | 81.9 / 95.5 | – | 1.5
X3D-XXL | 80.4 / 94.6 | – | – | 5.8
TimeSFormer-L | 80.7 / 94.7 | 82.2 / 95.6 | – | 7.14
"""
TFLOPS = {"VATT-Base": "9.09", "VATT-Medium": "15.02", "VATT-Large": "29.80", "VATT-MA-Medium": "15.02"}
# mAP, AUC, d-prime.
AUDIO = """
DaiNet | 29.5 | 95.8 | 2.437
LeeNet11 | 26.6 | 95.3 | 2.371
LeeNet24 | 33.6 | 96.3 | 2.525
Res1dNet31 | 36.5 | 95.8 | 2.444
Res1dNet51 | 35.5 | 94.8 | 2.295
Wavegram-CNN | 38.9 | 96.8 | 2.612
"""
# Top-1, top-5.
IMAGE = """
iGPT-L (ImageNet) | 72.6 | –
ViT-Base (JFT) | 79.9 | –
"""
# R@10 and median rank on YouCook2 and MSR-VTT; batch and epochs are in the name.
RETRIEVAL = """
MIL-NCE (batch 8192, 27 epochs) | 51.2 | 10 | 32.4 | 30
MMV (batch 4096, 8 epochs) | 45.4 | 13 | 31.1 | 38
"""
DROP_GFLOPS = ("188.1", "375.4", "574.2", "784.8")
SIZES = {"Small": 20.9, "Base": 87.9, "Medium": 155.0, "Large": 306.1}
RESOLUTION_GFLOPS = {
    "k400-32x224-drop-0": "548.1",
    "k400-64x224-drop-0": "1222.1",
    "k400-32x320-drop-75": "279.8",
    "k400-32x320-drop-50": "572.5",
    "k400-32x320-drop-25": "898.9",
    "k400-32x320-drop-0": "1252.3",
}


class Measured(NamedTuple):
    """Scores of a recipe in the paper's units, over how many clips, and where they come from."""

    scores: dict[str, float]
    clips: int
    device: str
    commit: str
    command: str
    path: Path


def read_result(one: Recipe, path: Path) -> Measured:
    """Return the scores of recipe `one` in `path`.

    Raises `ReportError` when they are not those of its model and settings.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        model = result["finetune"]["model"] if one.tuned else result["model"]
        scores = scores_of(one, result)
        environment = result["environment"]
        commit = f"{(environment['commit'] or 'no commit')[:9]}{', changed files' if environment.get('dirty') else ''}"
        differ = differences(one, model, result)
        measured = Measured(
            {name: scaled(name, scores[name]) for name in one.paper},
            clips_of(one, result),
            environment["device"],
            commit,
            shlex.join(["python", *environment["argv"]]),
            path,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is no result of {one.name} ({error!r}); python -m vatt.recipes {one.name} prints "
            "the commands that make it"
        ) from error
    if differ:
        raise ReportError(
            f"{path} is not measured as {one.name} says ({'; '.join(differ)}); its numbers do not belong in the tables"
        )
    return measured


def differences(one: Recipe, model: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Return where a result's model, input and protocol are not the recipe's."""
    resolved = settings(one)
    theirs = resolved.model if isinstance(resolved, FinetuneConfig) else preset(one.model).model
    expected = json.loads(json.dumps(to_dict(theirs)))
    if isinstance(resolved, FinetuneConfig):
        which = ["shared_encoder"] if model["kind"] == "agnostic" else [f"{resolved.modality}_encoder"]
        names = ["kind", *which, "audio" if resolved.modality == "audio" else "video", "drop"]
        pairs = [
            ("task", one.task, result["finetune"]["task"]),
            ("steps", resolved.steps, result["finetune"]["steps"]),
            ("from scratch", one.scratch, not result["finetune"]["init"]),
        ]
    else:
        names = ["kind", "video_encoder", "audio_encoder", "text_encoder", "shared_encoder"]
        if one.drop is not None:
            names, expected["drop"] = [*names, "drop"], {**expected["drop"], "rate": one.drop}
        done = result["evaluate"]
        own = "probe" if one.task == "probe" else "score"
        pairs = [(name, resolved[name], done[name]) for name in ("task", "windows", own)]
        if resolved["fps"] is not None:
            pairs.append(("frames a second", resolved["fps"], done["video"]["fps"]))
    pairs += [(name, expected[name], model[name]) for name in names]
    return [f"{name}: {ours!r}, there {there!r}" for name, ours, there in pairs if ours != there]


def scores_of(one: Recipe, result: Mapping[str, Any]) -> dict[str, float]:
    if one.tuned:
        return result["test"]["scores"]
    if one.task == "retrieve":
        return result["retrieval"]["text_to_video"]
    return result["probe"]["audio" if one.dataset == "esc50" else "video"]["scores"]


def clips_of(one: Recipe, result: Mapping[str, Any]) -> int:
    """Return how many clips were scored, over all folds."""
    if one.tuned:
        return result["test"]["labelled"]
    if one.task == "retrieve":
        return result["retrieval"]["text_to_video"]["candidates"]
    folds = result["probe"]["audio" if one.dataset == "esc50" else "video"]["folds"]
    return sum(fold["tested"] for fold in folds.values())


def scaled(name: str, value: float) -> float:
    """Return a score as the paper prints it: shares in per cent."""
    return value if name in ("d-prime", "median_rank") else 100 * value


def printed(name: str, value: float) -> str:
    return number(value, {"d-prime": 3, "median_rank": 0}.get(name, 1)) if value == value else "–"


def paper_cell(one: Recipe) -> str:
    return " / ".join(printed(name, value) for name, value in one.paper.items())


def here_cell(one: Recipe, measured: Mapping[str, Measured]) -> str:
    if one.name not in measured:
        return MISSING
    result = measured[one.name]
    return f"{' / '.join(printed(name, result.scores[name]) for name in one.paper)} ({result.clips} clips)"


def literature(text: str) -> list[list[str]]:
    return [line.split(" | ") for line in text.strip().splitlines()]


def beside(cells: Sequence[str]) -> list[str]:
    """Return numbers of others, each followed by an empty cell: they are the paper's, and nobody measured them here."""
    return [cell for value in cells for cell in (value, "–")]


def table_1(measured: Mapping[str, Measured]) -> str:
    names = ("k400", "k600", "mit")
    columns = [
        "method",
        *(f"{DATASETS[name].name}, {whose}" for name in names for whose in ("paper", "here")),
        "inference TFLOPs, paper",
    ]
    rows = [[method, *beside(scores), flops] for method, *scores, flops in literature(VIDEO)]
    for size in ("base", "medium", "large", "ma-medium"):
        ours = [RECIPES[f"{name}-{size}"] for name in names]
        cells = [cell for one in ours for cell in (paper_cell(one), here_cell(one, measured))]
        rows.append([ours[0].row, *cells, TFLOPS[ours[0].row]])
    return "## Table 1: video action recognition, top-1 / top-5\n\n" + table(columns, rows)


def plain(
    title: str, scores: Sequence[str], others: str, names: Sequence[str], measured: Mapping[str, Measured]
) -> str:
    """Return a table of one data set."""
    rows = [[method, " / ".join(values), "–"] for method, *values in literature(others)]
    rows += [[RECIPES[name].row, paper_cell(RECIPES[name]), here_cell(RECIPES[name], measured)] for name in names]
    joined = " / ".join(scores)
    return f"## {title}\n\n" + table(["method", f"{joined}, paper", f"{joined}, here"], rows)


def table_4(measured: Mapping[str, Measured]) -> str:
    names = ("youcook2", "msrvtt")
    columns = ["method", *(f"{DATASETS[name].name}, {whose}" for name in names for whose in ("paper", "here"))]
    rows = [[method, f"{a} / {b}", "–", f"{c} / {d}", "–"] for method, a, b, c, d in literature(RETRIEVAL)]
    for model in ("mbs", "ma-medium"):
        ours = [RECIPES[f"{name}-{model}"] for name in names]
        cells = [cell for one in ours for cell in (paper_cell(one), here_cell(one, measured))]
        rows.append([f"{ours[0].row} (batch 2048, 4 epochs)", *cells])
    return "## Table 4: zero-shot text-to-video retrieval, R@10 / median rank\n\n" + table(columns, rows)


def table_5(measured: Mapping[str, Measured]) -> str:
    columns = ["", *(f"{100 * rate:.0f} % dropped, {whose}" for rate in DROPPED for whose in ("paper", "here"))]
    rows = [["multimodal GFLOPs", *beside(DROP_GFLOPS)]]
    for name in ("hmdb51", "ucf101", "esc50", "youcook2", "msrvtt"):
        ours = [RECIPES[f"{name}-drop-{100 * rate:.0f}"] for rate in DROPPED]
        cells = [cell for one in ours for cell in (paper_cell(one), here_cell(one, measured))]
        rows.append([f"{DATASETS[name].name}, {next(iter(ours[0].paper)).replace('top1', 'linear top-1')}", *cells])
    return "## Table 5: DropToken in VATT-MBS\n\n" + table(columns, rows)


def table_6(measured: Mapping[str, Measured]) -> str:
    rows = [
        [one.row, paper_cell(one), here_cell(one, measured), RESOLUTION_GFLOPS[one.name]]
        for one in RECIPES.values()
        if one.table == 6
    ]
    columns = ["input", "top-1, paper", "top-1, here", "inference GFLOPs, paper"]
    return "## Table 6: VATT-Medium on Kinetics-400\n\n" + table(columns, rows)


def table_7(reports: Path) -> str:
    """Return Table 7. Parameters are counted, not trained: the newest report of bench/model_sizes.py has them."""
    paths = sorted(reports.glob("*/model_sizes.json"))
    counted = {
        row["model"]: row["parameters"] for path in paths for row in harness.load(path).rows if row["kind"] == "paper"
    }
    rows = [
        [
            name,
            number(millions, 1, " M"),
            number(counted[name] / 1e6, 1, " M") if name in counted else "not counted: bench/model_sizes.py",
        ]
        for name, millions in SIZES.items()
    ]
    return "## Table 7: parameters\n\n" + table(["model", "paper", "here"], rows)


def sources(measured: Mapping[str, Measured]) -> str:
    if not measured:
        return "Nothing was measured here: the paper's corpora are not part of this project."
    rows = [
        [name, str(result.path), result.device, result.commit, f"`{result.command}`"]
        for name, result in sorted(measured.items())
    ]
    return "## What was measured here\n\n" + table(["recipe", "result", "device", "commit", "command"], rows, left=5)


def page(measured: Mapping[str, Measured], reports: Path) -> str:
    """Return all tables as Markdown."""
    audio, image = ("audioset-base", "audioset-ma-medium"), ("imagenet-scratch", "imagenet-base")
    head = (
        '# The paper\'s tables\n\n"Paper": as printed there. "Here": from a result of `python -m vatt.recipes NAME`; '
        f'"{MISSING}" where there is none. FLOPs: bench/droptoken_sweep.py and bench/resolution_sweep.py.'
    )
    return (
        "\n\n".join(
            [
                head,
                table_1(measured),
                plain("Table 2: AudioSet, fine-tuned", ("mAP", "AUC", "d-prime"), AUDIO, audio, measured),
                plain("Table 3: ImageNet, fine-tuned", ("top-1", "top-5"), IMAGE, image, measured),
                table_4(measured),
                table_5(measured),
                table_6(measured),
                table_7(reports),
                sources(measured),
            ]
        )
        + "\n"
    )


def collect(given: Sequence[str], reports: Path) -> dict[str, Measured]:
    """Return the results of the command line (NAME=FILE, or a file in a folder of that name), and of `reports`."""
    files = {path.stem: path for path in sorted(reports.glob("*/recipes/*.json"))}
    for text in given:
        name, separator, file = text.rpartition("=")
        path = Path(file)
        files[name if separator else path.parent.name] = path
    return {name: read_result(recipe(name), path) for name, path in files.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser(
        "paper_tables", "Print all tables of the paper with what was measured here beside its numbers.", EXAMPLES
    )
    add = parser.add_argument
    add("results", nargs="*", metavar="NAME=FILE", help="a result.json of the recipe NAME (default: its folder's name)")
    add(
        "--reports",
        type=Path,
        default=harness.REPORTS,
        metavar="DIR",
        help="folder of reports (default: reports/ here)",
    )
    add("--out", type=Path, metavar="FILE", help="write the page there instead of printing it")
    args = parser.parse_args(argv)
    try:
        text = page(collect(args.results, args.reports), args.reports)
        if args.out:
            write_atomically(args.out, text.encode())
        else:
            print(text, end="")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
