"""A model card: `python -m vatt.card DIR` writes DIR/README.md for a trained, fine-tuned or converted model.

All it says comes from config.json, result.json and metrics.jsonl of the run and from the header of the weights; what
they do not hold is "unknown". A card is public: of absolute paths it keeps the last name only.

Its last line carries a checksum of all others, by which a card that somebody has written or edited is recognised.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .checkpoints.hub import front_matter
from .checkpoints.model_folder import SECTIONS, VOCABULARY, model_folder
from .errors import ConfigError, RunError
from .runtime.cli import exit_code
from .runtime.files import write_atomically
from .runtime.forms import FormError, parse_json, read_json
from .runtime.lock import owned
from .runtime.provenance import public

UNKNOWN = "unknown"
MARKER = re.compile(r"<!-- written by vatt\.card, sha256 of what is above: ([0-9a-f]{64}) -->\n")
POINTS = 10  # of a curve
CURVES = ("loss", "video_text", "video_audio", "gradient_norm", "rate")
PICTURES = {"loss.png": "Training curves", "confusion.png": "Confusion matrix of the test clips"}
EXAMPLES = """examples:
  python -m vatt.card runs/mbs
  python -m vatt.card runs/finetune-video --license apache-2.0 --name "VATT-MBS on Kinetics-400"
  python -c "import vatt; vatt.VATT.from_pretrained('runs/mbs').push_to_hub('user/name')"    a model to the hub, ...
  hf upload user/name runs/mbs/README.md README.md        ... then its card, and in the same way loss.png
  hf upload user/name runs/finetune-video/model .         a classifier; its config.json names folders of this machine

DIR is the folder of a run (finished or not), or one that holds a model only (converted, saved). A README.md that this
command did not write, or that was edited since, is kept unless --force is given.
exit codes: 0 done, 1 failed, 2 wrong usage."""


@dataclass(frozen=True)
class Records:
    """What a folder says of its model; an empty dictionary or list stands for a file that is not there.

    `run`: config.json of the run, `model`: that of the exported model, `result`: result.json, `metrics`: its steps.
    """

    folder: Path
    run: dict[str, Any]
    model: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """Of the run; of a model alone, those that its folder holds."""
        sources = [look_up(record, section) for record in (self.run, self.model) for section in SECTIONS]
        return next((source for source in sources if isinstance(source, dict)), {})

    @property
    def trained(self) -> bool:
        """Whether `settings` are those of the training that made the model.

        Those of a converted or saved model are defaults where nobody recorded any. A fine-tuned model that commit
        20a74a7 exported without its run has the loss and the optimizer of pre-training, which never ran.
        """
        if self.run:
            return True
        return "environment" in self.model and ("finetune" in self.model or "classifier" not in self.model)

    @property
    def environment(self) -> dict[str, Any]:
        """Where it was trained: of the process that finished the run, else of the one that last began."""
        sources = [look_up(record, "environment") for record in (self.result, self.model, self.run)]
        return next((source for source in sources if isinstance(source, dict)), {})


# What is taken from the records; anything else is shown as it is.
ENVIRONMENT = {"argv?": ([str], None), "versions?": (dict, None), "operations?": (str, None)}
CONFIG = {
    "environment?": ENVIRONMENT,
    "config?": {"data?": {"source?": str}, "steps?": int},
    "finetune?": {"data?": {"source?": str}, "steps?": int, "task?": str, "init?": str},
    "classifier?": {"labels?": [str], "task?": str, "modality?": str},
}
RESULT = {
    "environment?": ENVIRONMENT,
    "train_seconds?": (float, None),
    "retrieval?": {"*": dict},
    "test?": {"scores?": (dict, None)},
    "steps?": int,
}
STEP: dict[str, Any] = {"step": int, "updated?": bool, **{f"{name}?": (float, None) for name in CURVES}}


def read_records(folder: Path) -> Records:
    """All records in `folder`. Raises `RunError` for a folder without any, or with one that is damaged."""
    model = model_folder(folder)
    run = _read_json(folder / "config.json")
    exported = _read_json(model / "config.json")
    if model == folder:
        # A run that is not finished has no weights here yet, a model alone no run.
        run, exported = ({}, run) if (folder / "model.safetensors").exists() else (run, {})
    if not run and not exported:
        raise RunError(f"{folder} holds no run and no model: config.json is missing")
    path = folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return Records(folder, run, exported, _read_json(folder / "result.json", RESULT), _steps(path, lines))


def _read_json(path: Path, form: Any = None) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = read_json(path, form or CONFIG)
    except FormError as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or move it away to have its part unknown") from error
    return content


def _steps(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    steps = []
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, line in enumerate(lines, 1):
        try:
            steps.append(parse_json(line, STEP))
        except FormError as error:
            if number < len(lines):  # the last one is cut when a run is killed
                raise RunError(f"{path}:{number} is damaged ({error}); restore it, or move it away") from error
    return steps


def look_up(record: Any, path: str) -> Any:
    """`record["a"]["b"]` for "a.b"; None where there is nothing."""
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def show(value: Any) -> str:
    """A value for people; "unknown" for None and for NaN or infinity, which records hold as null."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " x ".join(map(show, value))
    return str(value).replace("|", r"\|").replace("\n", " ")


def table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    cells = [header, ("---",) * len(header), *(tuple(map(show, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def parameters(folder: Path) -> int | None:
    """All numbers in the weights but counters, from the file's header; None without weights."""
    path = model_folder(folder) / "model.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as weights:
            slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 (no mapping)
            return sum(math.prod(part.get_shape()) for part in slices if part.get_dtype().startswith(("F", "BF")))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def task_of(records: Records) -> str | None:
    """video, audio or image for a classifier; None for a pre-trained model."""
    sources = (look_up(records.run, "finetune.task"), look_up(records.model, "classifier.task"))
    return next(filter(None, (*sources, look_up(records.model, "classifier.modality"))), None)


def summary_sentence(records: Records) -> str:
    """What it is and how far its training came, in a sentence or two."""
    sentence = f"A modality-{show(look_up(records.settings, 'model.kind'))} VATT"
    if task := task_of(records):
        start = records.settings.get("init")
        origin = "trained from scratch" if start == "" else f"fine-tuned from {public(start) if start else UNKNOWN}"
        sentence += f" that classifies {'sound' if task == 'audio' else task}, {origin}"
    else:
        sentence += ", pre-trained on video, audio and text"
        if start := records.settings.get("init"):
            sentence += f", starting from {public(str(start))}"
    if official := look_up(records.model, "official"):
        step = show(look_up(official, "step"))
        return f"{sentence}; converted from the official checkpoint {show(look_up(official, 'source'))}, step {step}."
    planned, scored = records.settings.get("steps"), records.result.get("steps")
    if records.run and (scored is None or scored != planned):
        sentence += f". **Its training is not finished:** {show(last_step(records))} of {show(planned)} steps"
        if scored is not None:  # it was finished once and goes on
            sentence += f"; weights and scores are those after {show(scored)}"
    return f"{sentence}."


def last_step(records: Records) -> int | None:
    """Steps that were made: as metrics.jsonl says, or result.json where that is gone."""
    return records.metrics[-1].get("step") if records.metrics else look_up(records.result, "steps")


def usage(records: Records) -> str:
    frames, samples = "uint8 [clips, frames, height, width, 3]", "float [clips, samples] in [-1, 1]"
    if task := task_of(records):
        shape = samples if task == "audio" else frames
        lines = [f"logits = model(x)  # {shape} -> [clips, classes]"]
    else:
        lines = [
            f"to_audio, to_text = model.embed_video(frames)  # {frames}",
            f"sound = model.embed_audio(samples)  # {samples}",
            "text = model.embed_text(ids)  # int64 [clips, captions, words], of vatt.load_tokenizer",
        ]
    return "\n".join(["```python", "import vatt", "", 'model = vatt.load("DIR")  # what you downloaded', *lines, "```"])


def model_rows(records: Records) -> list[tuple[Any, ...]]:
    settings, task = records.settings, task_of(records)
    modalities = ("video", "audio", "text") if task is None else ("audio",) if task == "audio" else ("video",)
    agnostic = look_up(settings, "model.kind") == "agnostic"

    def size(name: str) -> str:
        return show(look_up(settings, f"model.{name}"))

    rows: list[tuple[Any, ...]] = [("preset", settings.get("preset")), ("kind", size("kind"))]
    for name in ("shared",) if agnostic else modalities:
        encoder = f"{name}_encoder"
        rows.append((f"{name} encoder", f"{size(f'{encoder}.layers')} layers of width {size(f'{encoder}.width')}"))
    rows.append(("parameters", f"{count:,}" if (count := parameters(records.folder)) else None))
    if "video" in modalities:
        pixels = f"{size('video.size')} x {size('video.size')} pixels at {size('video.fps')} a second"
        rows.append(("video", f"{size('video.frames')} frames of {pixels}, voxels of {size('video.patch')}"))
    if "audio" in modalities:
        rate = f"{size('audio.rate')} Hz, patches of {size('audio.patch')}"
        rows.append(("sound", f"{size('audio.samples')} samples at {rate}"))
    if "text" in modalities:
        path = model_folder(records.folder) / VOCABULARY
        words = len(path.read_text().splitlines()) if path.exists() else None
        rows += [("words of a caption", size("text.words")), ("words it knows", words)]
    if task:
        labels = look_up(records.model, "classifier.labels") or []
        rows += [
            ("classes", look_up(records.model, "classifier.classes")),
            ("class names", ", ".join(map(str, labels[:20])) + (", ..." if labels[20:] else "")),
        ]
    return rows


def data_rows(records: Records) -> list[tuple[Any, ...]]:
    # What the settings of a converted or saved model say of data are defaults, not what it has seen.
    data = look_up(records.settings, "data") if records.run or records.environment else None
    source = look_up(data, "source")
    if source == "":
        source = f"the built-in corpus, {show(look_up(data, 'builtin_clips'))} generated clips"
    return [
        ("corpus", source and public(source)),
        ("training split", look_up(data, "train_split")),
        ("test split", look_up(data, "test_split")),
        ("clips trained on", records.result.get("train_clips")),
        ("clips that could not be read", records.result.get("bad_clips")),
        ("licence of the data", None),
    ]


def training_rows(records: Records) -> list[tuple[Any, ...]]:
    settings, environment, result = records.settings, records.environment, records.result
    if not records.trained:
        return [("steps", look_up(records.model, "official.step")), ("all else", None)]
    # A model is exported after the last step.
    steps = f"{show(last_step(records))} of {show(settings.get('steps'))}" if records.run else settings.get("steps")
    skipped = sum(not step.get("updated", True) for step in records.metrics) if records.metrics else None
    seconds = result.get("train_seconds")
    return [
        ("steps", steps),
        ("loss", loss_of(settings)),
        ("optimizer", optimizer_of(settings)),
        ("steps without update (not finite)", skipped),
        ("clips a step", look_up(settings, "data.batch_size")),
        ("learning rate", look_up(settings, "optim.rate")),
        ("warm-up, steps", look_up(settings, "optim.warmup")),
        ("tokens dropped (DropToken)", look_up(settings, "model.drop.rate")),
        ("seed", settings.get("seed")),
        ("final loss", result.get("final_loss")),
        ("training time of the last process", None if seconds is None else f"{seconds:.0f} s"),
        ("device", environment.get("device")),
        ("processor", f"{show(environment.get('cpu'))}, {show(environment.get('cores'))} cores"),
        ("operations", str(environment.get("operations") or "").removeprefix("operations: ")),
    ]


def loss_of(settings: dict[str, Any]) -> str:
    if "task" not in settings:
        return f"contrastive, {show(look_up(settings, 'loss.form'))}"
    loss, smoothing, mixup = (settings.get(name) for name in ("loss", "smoothing", "mixup"))
    return ", ".join(
        [
            f"{show(loss)} cross-entropy",
            *([f"labels smoothed by {show(smoothing)}"] if smoothing else []),
            *([f"mixup {show(mixup)}"] if mixup else []),
        ]
    )


def optimizer_of(settings: dict[str, Any]) -> str:
    if "task" in settings:
        if look_up(settings, "optim.optimizer") == "adamw":
            return f"AdamW with weight decay {show(look_up(settings, 'optim.weight_decay'))}"
        return f"SGD with momentum {show(look_up(settings, 'optim.momentum'))}"
    return f"Adam with betas {show(look_up(settings, 'optim.beta1'))} and {show(look_up(settings, 'optim.beta2'))}"


def scores(records: Records) -> str:
    """Tables of held-out retrieval and of the test clips; "unknown" without either."""
    parts = []
    if retrieval := records.result.get("retrieval"):
        names = ("R@1", "R@5", "R@10", "median_rank", "queries", "candidates", "chance_R@10")
        ranked = [(name.replace("_", "-"), *map(one.get, names)) for name, one in retrieval.items()]
        parts.append(
            "Zero-shot retrieval among held-out clips (shares of queries; rank 1 is best):\n\n"
            + table(("query", *(name.replace("_", " ") for name in names)), ranked)
        )
    if test := records.result.get("test"):
        values = (test.get("scores") or {UNKNOWN: None}).items()
        counts = f"{show(test.get('labelled'))} labelled of {show(test.get('clips'))} test clips"
        views = f"{show(test.get('views'))} views each, {show(test.get('bad_clips'))} clips could not be read"
        parts.append(f"{counts}, {views}:\n\n{table(('score', 'value'), values)}")
    return "\n\n".join(parts) or UNKNOWN


def curves(records: Records) -> str:
    """Means over `POINTS` equal spans of steps, and the pictures that lie in the folder."""
    parts = [f"![{text}]({name})" for name, text in PICTURES.items() if (records.folder / name).is_file()]
    updated = [step for step in records.metrics if step.get("updated", True)]
    names = [name for name in CURVES if updated and name in updated[0]]
    if names:
        edges = [len(updated) * i // POINTS for i in range(POINTS + 1)]
        spans = [updated[a:b] for a, b in itertools.pairwise(edges) if b > a]
        rows = [(f"{span[0]['step']} to {span[-1]['step']}", *(_mean(span, name) for name in names)) for span in spans]
        header = ("steps", *(name.replace("_", " ") for name in names))
        parts.append(f"Means over spans of steps:\n\n{table(header, rows)}")
    return "\n\n".join(parts) or UNKNOWN


def _mean(span: list[dict[str, Any]], name: str) -> float | None:
    values = [step[name] for step in span if step.get(name) is not None]
    return sum(values) / len(values) if values else None


def provenance(records: Records) -> str:
    environment = records.environment
    arguments = environment.get("argv")
    command = shlex.join(["python", *(public(str(a)) for a in arguments)]) if arguments else UNKNOWN
    dirty = ", with changes that were not committed" if environment.get("dirty") else ""
    versions = {"python": environment.get("python"), **(environment.get("versions") or {})}
    versions_text = ", ".join(f"{name} {show(version)}" for name, version in versions.items())
    return (
        f"Command of the last process:\n\n```\n{command}\n```\n\n"
        f"Commit: {show(environment.get('commit'))}{dirty}. Versions: {versions_text}."
    )


def write_card(records: Records, name: str, licence: str) -> str:
    """The whole README, its checksum in the last line."""
    parts = [
        front_matter(task_of(records), licence),
        f"# {name}",
        summary_sentence(records),
        usage(records),
        "## Model",
        table(("what", "value"), model_rows(records)),
        "## Data",
        table(("what", "value"), data_rows(records)),
        "## Training",
        table(("what", "value"), training_rows(records)),
        "## Scores",
        scores(records),
        "## Curves",
        curves(records),
        "## Where it comes from",
        provenance(records),
        "## Licence",
        f"Of the weights: {licence}. The code, vatt, is under Apache-2.0.",
        f'"{UNKNOWN.capitalize()}" means that the run has not recorded it. Method: Akbari et al., *VATT: Transformers '
        "for Multimodal Self-Supervised Learning from Raw Video, Audio and Text*, NeurIPS 2021.",
    ]
    text = "\n\n".join(parts) + "\n\n"
    return f"{text}<!-- written by vatt.card, sha256 of what is above: {_sha256(text)} -->\n"


def is_ours(text: str) -> bool:
    """Whether `text` is a card as `write_card` made it, nothing changed."""
    above, line = text[: text.rfind("<!--")], text[text.rfind("<!--") :]
    match = MARKER.fullmatch(line)
    return match is not None and match[1] == _sha256(above)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.card",
        description="Write a model card, DIR/README.md, ready for the hub.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of a run or of a model")
    add("--name", metavar="TEXT", help="title of the card (default: the folder's name)")
    add(
        "--license",
        default=UNKNOWN,
        metavar="ID",
        help="licence of the weights as the hub names it, e.g. apache-2.0 (default: unknown)",
    )
    add("--force", action="store_true", help="replace also a README.md that this command did not write")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9.+-]+", args.license):
        parser.error(f"--license takes an identifier like apache-2.0, cc-by-4.0 or other, got {args.license!r}")
    return args


def put_card(folder: Path, name: str | None, license: str, force: bool) -> None:
    """Write the card of `folder` into it, over somebody else's only with `force`."""
    path = folder / "README.md"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    records = read_records(folder)
    if path.exists() and not force and not is_ours(path.read_text(errors="replace")):
        raise ConfigError(f"{path} was written or edited by somebody; --force replaces it")
    with owned(path, force=force):
        write_atomically(path, write_card(records, name or folder.absolute().name, license).encode())
    print(f"done: {path}")
    if folder.absolute().name == "model" and (folder.absolute().parent / "metrics.jsonl").exists():
        print(f"note: the card of {folder.absolute().parent}, this model's run, says more")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return exit_code(lambda: put_card(args.folder, args.name, args.license, args.force))


if __name__ == "__main__":
    sys.exit(main())
