"""The page, figure and CSV of the DropToken sweep, drawn from its JSON alone, beside the paper's Table 5."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from harness import report as harness
from harness.pages import BLACK, BLUE, GREEN, ORANGE, PINK, ReportPage, legend_below, number, table
from harness.report import Report

from workloads.model_steps import checks_table, write_csv

PROBED = ("video", "audio")  # modalities whose features are probed
NAME = "droptoken_sweep"
KINDS = ("timing", "corpus", "esc10", "data")
ORDER = ("flops", *KINDS)  # of rows on the page
TUNING_FOLD = 1  # of ESC-10; the settings of `esc10.Recipe` were chosen on it
PAPER_GFLOPS = {0.75: 188.1, 0.5: 375.4, 0.25: 574.2, 0.0: 784.8}  # multimodal inference, VATT-MBS
PAPER: dict[str, dict[float, float]] = {  # linear top-1, and R@10 of the two last; per cent
    "HMDB51": {0.75: 62.5, 0.5: 64.8, 0.25: 65.6, 0.0: 66.4},
    "UCF101": {0.75: 84.0, 0.5: 85.5, 0.25: 87.2, 0.0: 87.6},
    "ESC50": {0.75: 78.9, 0.5: 84.1, 0.25: 84.6, 0.0: 84.9},
    "YouCookII": {0.75: 17.9, 0.5: 20.7, 0.25: 24.2, 0.0: 23.1},
    "MSR-VTT": {0.75: 14.1, 0.5: 14.6, 0.25: 15.1, 0.0: 15.2},
}
FILES = {"hmdb51": "HMDB51", "ucf101": "UCF101", "esc50": "ESC50", "youcook": "YouCookII", "msrvtt": "MSR-VTT"}
STYLES = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (BLACK, "v")]


class Series(NamedTuple):
    """One score on one data set. values: drop rate -> {seed, fold or model: per cent}; gflops: drop rate -> forward."""

    name: str
    values: dict[float, dict[str, float]]
    gflops: dict[float, float]

    def mean(self, rate: float) -> float:
        return statistics.fmean(self.values[rate].values())

    def loss(self, rate: float) -> list[float]:
        """Points lost against no dropping, seed by seed and fold by fold."""
        whole = self.values.get(0.0, {})
        return [value - whole[key] for key, value in self.values[rate].items() if key in whole]


def series(report: Report) -> list[Series]:
    """What was measured, in the order of the table."""
    by_name: dict[str, Series] = {}

    def add(name: str, row: dict[str, Any], key: str, value: float) -> None:
        one = by_name.setdefault(name, Series(name, {}, {}))
        one.values.setdefault(row["drop_rate"], {})[key] = 100 * value
        one.gflops[row["drop_rate"]] = row["gflops"]

    for row in sorted(report.rows, key=lambda row: ORDER.index(row["kind"])):
        if row["kind"] == "corpus":
            for modality in PROBED:
                scores = [probe[modality]["top1"] for probe in row["probe"].values() if modality in probe]
                if scores:
                    add(f"built-in corpus, {modality} probe", row, f"seed {row['seed']}", statistics.fmean(scores))
            for direction in ("text_to_video", "audio_to_video"):
                add(
                    f"built-in corpus, {direction.replace('_', '-')} R@10",
                    row,
                    f"seed {row['seed']}",
                    row["retrieval"][direction]["R@10"],
                )
        elif row["kind"] == "esc10":
            add("ESC-10, top-1 from scratch", row, f"seed {row['seed']} fold {row['fold']}", row["top1"])
        elif row["kind"] == "data":
            for modality in row["probe"]:
                add(f"{row['name']}, {modality} probe", row, row["init"], row["probe"][modality]["top1"])
            if "text_to_video" in row["retrieval"]:
                score = row["retrieval"]["text_to_video"]["R@10"]
                add(f"{row['name']}, text-to-video R@10", row, row["init"], score)
    return list(by_name.values())


def paper_column(name: str) -> str | None:
    """The paper's column for a series of a manifest of that name."""
    plain = re.sub("[^a-z0-9]", "", name.split(",")[0].lower())
    return next((column for start, column in FILES.items() if plain.startswith(start)), None)


def rates_of(report: Report) -> list[float]:
    """All drop rates of the report, the paper's among them, in the order of Table 5."""
    return sorted({row["drop_rate"] for row in report.rows}, reverse=True)


def page(report: Report) -> str:
    parts = [flops_part(report)]
    if any(r.get("p50") for r in report.rows):
        parts.append(timing_part(report))
    parts += [accuracy_part(report), details_part(report)]
    if report.gate["checks"]:
        parts.append("## Numerics\n\n" + checks_table(report))
    commands = dict.fromkeys(r["command"] for r in report.rows if "command" in r)
    if commands:
        parts.append("## Commands\n\nAccuracy rows were made by:\n\n" + "\n".join(f"- `python {c}`" for c in commands))
    parts.append(f"A line a drop rate: [{report.name}.csv]({report.name}.csv).")
    return "\n\n".join(parts)


def flops_part(report: Report) -> str:
    columns = [
        "dropped",
        "video tokens",
        "audio tokens",
        "GFLOPs, the paper's count",
        "printed in the paper",
        "ours - printed",
        "true GFLOPs (2 x MAC)",
    ]
    cells = []
    for r in (r for r in report.rows if r["kind"] == "flops"):
        gflops = (r["paper_count"], r["printed"], r["paper_count"] - r["printed"], r["true"])
        cells.append(
            [
                f"{r['drop_rate']:.0%}",
                *(str(r["tokens"][m]) for m in ("video", "audio")),
                *(number(x, 1) for x in gflops),
            ]
        )
    text = (
        'Inference on one clip with one caption; tokens with AGG. "The paper\'s count" is closed form: what '
        "TensorFlow's profiler counts, without Q K^T, and for rows that drop in a training graph with its dropouts. "
        "What is left over is about one further text row (0.65 GFLOPs) where tokens are dropped and four to five "
        'without dropping; what they are is not established. "True" counts every product of the kept tokens.'
    )
    return "\n\n".join(["## FLOPs of VATT-MBS (Table 5)", text, table(columns, cells)])


def timing_part(report: Report) -> str:
    s = report.settings
    rows = [r for r in report.rows if r["kind"] == "timing"]
    noise = max((r["p80"] - r["p20"]) / r["p50"] for r in rows if r.get("p50"))
    columns = [
        "step",
        "dropped",
        "true GFLOPs a step",
        "clips/s p20",
        "p50",
        "p80",
        "peak GiB",
        "speed-up over 0 %",
        "ideal",
        "speed-up / ideal",
    ]
    cells = [
        [
            r["mode"],
            f"{r['drop_rate']:.0%}",
            number(r.get("gflops"), 1),
            *(number(r.get("clips_per_second", {}).get(q), 3) for q in ("p20", "p50", "p80")),
            number(r.get("peak_bytes") and r["peak_bytes"] / 2**30),
            number(r.get("speedup")),
            number(r.get("ideal")),
            number(r.get("speedup") and r["speedup"] / r["ideal"]),
        ]
        for mode in ("inference", "training")
        for r in rows
        if r["mode"] == mode
    ]
    text = (
        f"All three modalities, batch {s['batch']}, {s['dtype']}, {'literal' if s['reference'] else 'fused'} "
        "operations. Inference drops tokens here, as the paper's GFLOPs have it; evaluation elsewhere never does. "
        f"{dropout_note(s)}Ideal: the ratio of true FLOPs. Widest p20 to p80 range of a row: {100 * noise:.1f} % "
        "of its median."
    )
    head = f"## Speed and memory of `{s['preset']}` on {report.environment['device']}"
    return "\n\n".join([head, text, table(columns, cells, left=2)])


def dropout_note(settings: dict[str, Any]) -> str:
    dropout = settings["model"]["video_encoder"]["dropout"]
    if not dropout or settings["reference"]:
        return ""
    return (
        f"Training has the preset's dropout of {dropout:g}; portable attention (CPUs) then computes probabilities "
        "block by block, twice, so that dropping tokens gains more time than it saves FLOPs. "
    )


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def accuracy_part(report: Report) -> str:
    measured = series(report)
    text = (
        "## Accuracy (%)\n\nEvery column names its data set. All tokens are used in evaluation; dropping is in "
        "training only. ± is the standard deviation over folds and seeds where there are several. Of the paper's "
        "columns the first three are linear probes, the last two text-to-video R@10."
    )
    if not measured:
        return f"{text}\n\nNot measured yet."
    paper = [f"paper: {name}" for name in PAPER]
    cells = [
        [
            f"{rate:.0%}",
            *(mean_and_spread(list(s.values[rate].values())) if rate in s.values else "–" for s in measured),
            *(number(PAPER[name].get(rate), 1) for name in PAPER),
        ]
        for rate in rates_of(report)
    ]
    parts = [text, table(["dropped", *(s.name for s in measured), *paper], cells)]
    compared = [s for s in measured if 0.0 in s.values and len(s.values) > 1]
    if compared:
        cells = [
            [
                f"{rate:.0%}",
                *(lost(s, rate) for s in compared),
                *(f"{PAPER[name][rate] - PAPER[name][0.0]:+.1f}" if rate in PAPER[name] else "–" for name in PAPER),
            ]
            for rate in rates_of(report)
            if rate
        ]
        parts += [
            "Points against no dropping, fold by fold and seed by seed (± standard error):",
            table(["dropped", *(s.name for s in compared), *paper], cells),
        ]
    return "\n\n".join(parts)


def lost(one: Series, rate: float) -> str:
    differences = one.loss(rate) if rate in one.values else []
    if not differences:
        return "–"
    error = f" ± {statistics.stdev(differences) / len(differences) ** 0.5:.1f}" if len(differences) > 1 else ""
    return f"{statistics.fmean(differences):+.1f}{error}"


def details_part(report: Report) -> str:
    makers = {"corpus": corpus_part, "esc10": esc10_part, "data": data_part}
    by_kind = {kind: [r for r in report.rows if r["kind"] == kind] for kind in makers}
    parts = [make(report, by_kind[kind]) for kind, make in makers.items() if by_kind[kind]]
    return "\n\n".join(["## In detail", *parts])


def corpus_part(report: Report, rows: list[dict[str, Any]]) -> str:
    probed = [(m, a) for m in PROBED for a in rows[0]["probe"] if m in rows[0]["probe"][a]]
    ranked = [(d, k) for d in ("text_to_video", "audio_to_video") for k in ("R@1", "R@10")]
    columns = ["dropped", "seed", *(f"{m}: {a}" for m, a in probed), *(f"{d.split('_')[0]} {k}" for d, k in ranked)]
    cells = [
        [
            f"{r['drop_rate']:.0%}",
            str(r["seed"]),
            *(number(100 * r["probe"][a][m]["top1"], 1) for m, a in probed),
            *(number(100 * r["retrieval"][d][k], 1) for d, k in ranked),
        ]
        for r in rows
    ]
    chance = {a: 100 / rows[0]["probe"][a][m]["classes"] for m, a in probed}
    text = (
        f"Tiny preset, {report.settings['corpus_steps']} steps. Chance of a probe, in %: "
        f"{', '.join(f'{value:.1f} ({name})' for name, value in chance.items())}; of R@10: "
        f"{100 * rows[0]['retrieval']['text_to_video']['chance_R@10']:.0f}."
    )
    return "\n\n".join(["### Built-in corpus", text, table(columns, cells, left=2)])


def mean_or_dash(shares: list[float]) -> str:
    return number(100 * statistics.fmean(shares) if shares else None, 1)


def esc10_part(report: Report, rows: list[dict[str, Any]]) -> str:
    recipe, clips = report.settings["esc10"], rows[0]["clips"]
    keys = sorted({(r["seed"], r["fold"]) for r in rows})
    by = {(r["drop_rate"], r["seed"], r["fold"]): r for r in rows}
    cells = [
        [
            f"{rate:.0%}",
            *(number(100 * by[rate, *key]["top1"], 1) if (rate, *key) in by else "–" for key in keys),
            mean_or_dash([r["top1"] for r in rows if r["drop_rate"] == rate and r["fold"] != TUNING_FOLD]),
            number(statistics.fmean(r["train_seconds"] for r in rows if r["drop_rate"] == rate), 0),
        ]
        for rate in rates_of(report)
        if any(r["drop_rate"] == rate for r in rows)
    ]
    columns = [
        "dropped",
        *(f"seed {seed}, fold {fold}" for seed, fold in keys),
        f"mean without fold {TUNING_FOLD}",
        "training s",
    ]
    encoder = recipe["encoder"]
    text = (
        f"A raw-waveform transformer of {encoder['layers']} layers, width {encoder['width']}, trained from scratch on "
        f"four folds for {recipe['steps']} steps: {recipe['samples'] / recipe['rate']:g} s of {recipe['rate'] // 1000} "
        f"kHz sound in patches of {recipe['patch']} samples. Fold {TUNING_FOLD} was used to choose the settings. A "
        f"fold is {clips} clips, so one clip is {100 / clips:.2f} points. Chance is 10. Published for these folds "
        "(Piczak 2015): random forest on MFCC 72.7, people 95.7."
    )
    return "\n\n".join(["### ESC-10", text, table(columns, cells)])


def data_part(report: Report, rows: list[dict[str, Any]]) -> str:
    columns = ["data", "model", "dropped in its training", "clips", "bad clips", "probe top-1 / top-5", "R@10", "paper"]
    cells = [
        [
            r["name"],
            f"`{Path(r['init']).name}`",
            f"{r['drop_rate']:.0%}",
            str(r["clips"]),
            str(r["bad"]),
            ", ".join(f"{m} {100 * p['top1']:.1f} / {100 * p['top5']:.1f}" for m, p in r["probe"].items()) or "–",
            ", ".join(f"{k} {100 * s['R@10']:.1f}" for k, s in r["retrieval"].items()) or "–",
            paper_of(r["name"], r["drop_rate"]),
        ]
        for r in rows
    ]
    return "\n\n".join(["### Manifests", table(columns, cells, left=3)])


def paper_of(name: str, rate: float) -> str:
    column = paper_column(name)
    return "–" if column is None else f"{column} {number(PAPER[column].get(rate), 1)}"


def readme_rows(report: Report) -> list[tuple[str, str]]:
    lines = []
    for one in series(report):
        rates = [rate for rate in rates_of(report) if rate in one.values]
        lines.append(
            (
                f"DropToken, {one.name}, {' / '.join(f'{rate:.0%}' for rate in rates)} dropped in training",
                " / ".join(f"{one.mean(rate):.1f}" for rate in rates),
            )
        )
    for r in report.rows:
        if r["kind"] == "timing" and r["drop_rate"] and r.get("speedup"):
            lines.append(
                (
                    f"DropToken, {r['mode']} of `{report.settings['preset']}`, {r['drop_rate']:.0%} dropped",
                    f"{r['speedup']:.2f}x as fast as without (ideal {r['ideal']:.2f})",
                )
            )
    return lines


def figure(report: Report, plt: Any) -> Any:
    """Accuracy, what dropping costs of it, and speed, each in a panel; the paper's accuracy and costs below, apart."""
    drawn, panels = plt.subplots(2, 3, figsize=(15, 9.5), layout="constrained")
    (accuracy, cost, speed), (paper_accuracy, paper_cost, unused) = panels
    unused.remove()
    for (colour, marker), one in zip(STYLES * 5, series(report), strict=False):
        rates = sorted(one.values)
        style = {
            "color": colour,
            "marker": marker,
            "label": one.name.replace("built-in corpus", "corpus"),
            "capsize": 2,
        }
        dropped = [100 * rate for rate in rates]
        spread = [statistics.stdev(v) if len(v := list(one.values[rate].values())) > 1 else 0.0 for rate in rates]
        accuracy.errorbar(dropped, [one.mean(rate) for rate in rates], yerr=spread, **style)
        if 0.0 in one.values and len(rates) > 1:
            cost.errorbar(dropped, [statistics.fmean(one.loss(rate)) for rate in rates], **style)
    for (colour, marker), (name, values) in zip(STYLES, PAPER.items(), strict=True):
        rates = sorted(values)
        style = {"color": colour, "marker": marker, "label": name}
        dropped = [100 * rate for rate in rates]
        paper_accuracy.plot(dropped, [values[rate] for rate in rates], **style)
        paper_cost.plot(dropped, [values[rate] - values[0.0] for rate in rates], **style)
    for (colour, marker), mode in zip(STYLES, ("inference", "training"), strict=False):
        rows = [r for r in report.rows if r["kind"] == "timing" and r["mode"] == mode and r.get("speedup")]
        dropped = [100 * row["drop_rate"] for row in rows]
        speed.plot(dropped, [row["speedup"] for row in rows], color=colour, marker=marker, label=mode)
        ideal = [row["ideal"] for row in rows]
        speed.plot(dropped, ideal, color=colour, linestyle="--", label=f"{mode}: FLOP ratio")
    accuracy.set(ylabel="%", title="Accuracy, measured")
    cost.set(ylabel="points against no dropping", title="What dropping costs, measured")
    speed.set(ylabel="speed-up", title=f"Speed of {report.settings['preset']}, measured")
    paper_accuracy.set(ylabel="%", title="Accuracy, the paper's VATT-MBS")
    paper_cost.set(ylabel="points against no dropping", title="What dropping costs, the paper's VATT-MBS")
    for axes in (cost, paper_cost):
        axes.axhline(0, color=BLACK, linewidth=0.8)
    for axes in (accuracy, cost, speed, paper_accuracy, paper_cost):
        axes.set(xlabel="tokens dropped in training (%)", xticks=(0, 25, 50, 75))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            legend_below(axes, 2)
    speed.set(xlabel="tokens dropped (%)")
    return drawn


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """A line a drop rate: FLOPs, times and memory, and the mean and deviation of every score."""
    measured = series(report)
    lines: list[dict[str, Any]] = []
    for rate in rates_of(report):
        line: dict[str, Any] = {"drop_rate": rate}
        for row in (r for r in report.rows if r["drop_rate"] == rate):
            if row["kind"] == "flops":
                line |= {
                    "mbs video tokens": row["tokens"]["video"],
                    "mbs audio tokens": row["tokens"]["audio"],
                    "mbs GFLOPs paper count": row["paper_count"],
                    "mbs GFLOPs printed": row["printed"],
                    "mbs GFLOPs true": row["true"],
                }
            elif row["kind"] == "timing":
                speeds = row.get("clips_per_second", {})
                column = f"{report.settings['preset']} {row['mode']}"
                line |= {f"{column} clips/s {q}": speeds.get(q) for q in ("p20", "p50", "p80")}
                line |= {f"{column} {key}": row.get(key) for key in ("peak_bytes", "speedup", "ideal")}
        for one in measured:
            values = list(one.values.get(rate, {}).values())
            line[one.name] = statistics.fmean(values) if values else None
            line[f"{one.name}, deviation"] = statistics.stdev(values) if len(values) > 1 else None
        line |= {f"paper: {name}": values_.get(rate) for name, values_ in PAPER.items()}
        lines.append(line)
    return lines


def draw_csv(path: Path) -> None:
    """The CSV beside the JSON in `path`."""
    write_csv(path.with_suffix(".csv"), csv_rows(harness.load(path)))


REPORT_PAGE = ReportPage(page, figure, readme_rows, draw_csv)
