"""Table 7 of the paper: parameters, counted in models that are built without ever being filled with numbers.

The paper counts the fine-tuning model: position tables of 32x320x320 and a 600-way head. Beside it are our pre-training
models and the release's fine-tuning models, against the totals of the official ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from harness import cli
from harness import report as harness
from harness.pages import ReportPage, table
from harness.report import Report, ReportError

import torch
from accounting.parameters import PRETRAINING

from vatt.config.model import EncoderConfig, ModelConfig, VideoConfig
from vatt.config.presets import BASE, LARGE, MEDIUM, SMALL, preset
from vatt.model.vatt import VATT, Classifier, count_parameters

NAME = "model_sizes"
CLASSES = 600  # of Kinetics-600
# Table 7: encoder and printed millions.
PAPER = {"Small": (SMALL, 20.9), "Base": (BASE, 87.9), "Medium": (MEDIUM, 155.0), "Large": (LARGE, 306.1)}


class Tuned(NamedTuple):
    """A fine-tuning model of the release: whose encoder, what it classifies, and its official total."""

    name: str
    model: ModelConfig
    modality: str
    classes: int
    official: int


def specific(encoder: EncoderConfig) -> ModelConfig:
    return ModelConfig(video_encoder=encoder, audio_encoder=encoder)


AGNOSTIC = preset("ma_medium").model
FINETUNING = (
    Tuned("Base", specific(BASE), "video", 400, 87_762_832),
    Tuned("Medium", specific(MEDIUM), "video", 400, 154_765_712),
    Tuned("Large", specific(LARGE), "video", 400, 305_920_400),
    Tuned("MA-Medium", AGNOSTIC, "video", 400, 156_864_912),
    Tuned("Base", specific(BASE), "audio", 527, 86_484_239),
    Tuned("MA-Medium", AGNOSTIC, "audio", 527, 155_160_079),
)
EXAMPLES = """examples:
  python bench/model_sizes.py                       seconds; writes .json and .md of the report
  python bench/model_sizes.py --out runs/reports    somewhere else

exit codes: 0 done, 1 failed or a count differs from the official one, 2 wrong usage."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "model_sizes",
        "Count parameters as Table 7 of the paper does, beside the paper's and the official totals.",
        EXAMPLES,
    )
    cli.add_common_flags(parser)
    return parser.parse_args(argv)


def classifier(model: ModelConfig, modality: str, classes: int) -> Classifier:
    """A fine-tuning model of shapes alone (meta device); video has the position tables of 32x320x320."""
    with torch.device("meta"):
        return Classifier(replace(model, video=VideoConfig(size=320)), modality, classes)


def count() -> list[dict[str, Any]]:
    """A row a model: "parameters" is ours, "paper" (millions) or "official" what it is held against."""
    rows: list[dict[str, Any]] = []
    for name, (encoder, millions) in PAPER.items():
        model = classifier(specific(encoder), "video", CLASSES)
        rows.append(
            {
                "kind": "paper",
                "model": name,
                "parameters": count_parameters(model),
                "paper": millions,
                "layers": encoder.layers,
                "width": encoder.width,
                "mlp": encoder.mlp,
                "heads": encoder.heads,
                "tokeniser": count_parameters(model.backbone.tokens),
                "head": count_parameters(model.head),
                "encoder": count_parameters(model.backbone.encoder),
            }
        )
    for name, official in PRETRAINING.items():
        with torch.device("meta"):
            whole = VATT(preset(name).model)
        rows.append(
            {
                "kind": "pretraining",
                "model": name,
                "parameters": count_parameters(whole),
                "official": official,
                "trained": sum(p.numel() for p in whole.parameters() if p.requires_grad),
            }
        )
    for tuned in FINETUNING:
        ours = count_parameters(classifier(tuned.model, tuned.modality, tuned.classes))
        rows.append(
            {
                "kind": "finetuning",
                "model": f"{tuned.name}, {tuned.modality}, {tuned.classes} classes",
                "parameters": ours,
                "official": tuned.official,
            }
        )
    return rows


def of_kind(report: Report, kind: str) -> list[dict[str, Any]]:
    return [row for row in report.rows if row["kind"] == kind]


def page(report: Report) -> str:
    rows = of_kind(report, "paper")
    printed = [f"{row['parameters'] / 1e6:.1f}" for row in rows]
    parts = [
        f"The paper's Table 7 counts the fine-tuning model of video: position tables of 32x320x320 and a {CLASSES}-way "
        "head.",
        table(
            ["model", "layers", "width", "MLP", "heads", "tokeniser", "encoder", "head", "ours", "ours, M", "paper, M"],
            [
                [
                    r["model"],
                    *(str(r[key]) for key in ("layers", "width", "mlp", "heads")),
                    *(f"{r[key]:,}" for key in ("tokeniser", "encoder", "head", "parameters")),
                    ours,
                    f"{r['paper']:.1f}",
                ]
                for r, ours in zip(rows, printed, strict=True)
            ],
        ),
    ]
    for row, ours in zip(rows, printed, strict=True):
        if ours != f"{row['paper']:.1f}":
            parts.append(
                f"**{row['model']} differs: {ours} M by the count that gives the other rows to the printed digit, "
                f"{row['paper']:.1f} M in the paper.** No official checkpoint of this size exists to decide between "
                "them; what the paper counted there is not known."
            )
    parts += [
        "## Against the official models",
        "Every variable of the release's models but optimiser slots and "
        'counters. Pre-training models include the frozen word table; "trained" leaves it and batch norm\'s '
        "moving statistics out.",
    ]
    official = [*of_kind(report, "pretraining"), *of_kind(report, "finetuning")]
    parts.append(
        table(
            ["model", "trained", "ours", "official", "difference"],
            [
                [
                    f"{'pre-training' if r['kind'] == 'pretraining' else 'fine-tuning'}, {r['model']}",
                    f"{r.get('trained', r['parameters']):,}",
                    f"{r['parameters']:,}",
                    f"{r['official']:,}",
                    f"{r['parameters'] - r['official']:,}",
                ]
                for r in official
            ],
        )
    )
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    rows = of_kind(report, "paper")
    ours = ", ".join(f"{r['model']} {r['parameters'] / 1e6:.1f} ({r['paper']:.1f})" for r in rows)
    return [("parameters as Table 7 counts them, millions (the paper's)", ours)]


REPORT_PAGE = ReportPage(page, None, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    try:
        root = cli.output_folder(args)
        report, path = harness.open_report(
            NAME,
            "Parameters of the models (Table 7)",
            settings={"classes": CLASSES},
            method={"count": "models built on PyTorch's meta device; parameters and moving statistics"},
            out=root,
            resume=args.resume,
            quick=args.quick,
        )
        report.rows = count()
        report.gate["checks"] = [
            {"model": row["model"], "green": row["parameters"] == row["official"]}
            for row in report.rows
            if "official" in row
        ]
        report.gate["green"] = all(check["green"] for check in report.gate["checks"])
        report.finished = True
        report.save(path)
        cli.publish(path, REPORT_PAGE, root)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page(report))
    if not report.gate["green"]:
        wrong = ", ".join(check["model"] for check in report.gate["checks"] if not check["green"])
        print(f"error: parameters differ from the official model: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
