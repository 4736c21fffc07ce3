"""Every command of README and docs/, read there and executed: small stand-ins under their names, a few steps, a CPU.

A command that a reader can copy and that is not executed here fails, unless it stands in `NOT_RUN` with a reason.
"""

import ast
import csv
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import av
import decode
import fused_vs_reference
import gpu_report
import pytest
import youcook2
from helpers.forked import torchrun
from helpers.media import steady, tone_burst, write_clip
from helpers.processes import environment, finished
from helpers.small_model import write_model
from helpers.small_run import SMALL
from torch.distributed.run import get_args_parser
from workloads import model_steps

from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus

ROOT = Path(__file__).resolve().parents[1]
# Others go on with, look at or describe what the commands of pre-training made.
FIRST = [ROOT / "README.md", ROOT / "docs" / "pretraining.md"]
PAGES = [
    *FIRST,
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page not in FIRST),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|torchrun|pytest|make|pip)\s[^`]+)`")
NAMES = [f"clip{i:07d}" for i in range(8)]  # as long as those of YouTube

# What makes a command small; appended, so that it also replaces what README says.
TABLE_OF_WORDS = "--set=model.text.vocabulary=200 --set=model.text.embedding=16 --set=model.post_width=24"
REPORTS = "--out reports"
SHRINK = {
    "vatt.train": f"{shlex.join(SMALL)} {TABLE_OF_WORDS} --steps 2",
    "vatt.finetune": "--steps 2 --batch-size 2 --frames 16 --device cpu --set data.workers=0",
    "vatt.figures": "--method pca",
    "vatt.data.transcode": "--workers 1",
    "vatt.embed": "--workers 0 --device cpu",
    "vatt.official": "--config config.json",
    "vatt_kernels.aot": "--first --arch sm_80 --match projection",
    "bench/soak.py": f"--data clips/ --variants 3 --clips 8 --clips-damaged 1 {REPORTS}",
    "bench/decode.py": f"--data long/ --quick --rounds 1 --steps 1 --batch 2 --workers 0 {REPORTS}",
    "bench/gpu_report.py": f"--dry-run --only correctness {REPORTS}",
    "bench/droptoken_sweep.py": f"--quick --only timing --device cpu {REPORTS}",
    "bench/resolution_sweep.py": "--preset tiny --layers 1 --clips 8x64 --drop-rates 0 0.5 --repeats 1 --device cpu "
    f"{REPORTS}",
    "bench/fused_vs_reference.py": f"--preset tiny --layers 1 --drop-rates 0 --repeats 1 {REPORTS}",
    "bench/model_sizes.py": REPORTS,
    "bench/cpu_report.py": f"--quick --parts loader {REPORTS}",
    "bench/youcook2.py": f"--quick --steps 1 --work youcook2-runs {REPORTS}",
}
STAND_INS = {"PREFIX": "ckpt-500000", "DIR": "pictures", "OUT": "runs/mbs", "PATH": "clips.csv"}
NEEDS = {"vatt.official": "google_crc32c", "vatt_kernels.aot": "triton", "bench/videomae.py": "transformers"}
NOT_RUN = {
    r"pip install .*": "needs a package index",
    r"make (train|test)( ARGS=.*)?": "CI runs it",
    r"python -m vatt.data.sources FORMAT .*": "names no format; tests/data/sources runs each",
    r"make (compat( FULL=1)?|constraints|full)": "needs a package index and other Pythons; CI runs it",
    r"make (lint|docs)": "CI runs the first; the second needs what pip install -e '.[docs]' brings",
    r"make (bench|reports)": "its programs are executed one by one, here and in test_bench.py",
    r"pytest( --benchmark-only.*)?": "plain pytest runs each benchmark once, as a part of this suite",
    r"python -m vatt.search .* --serve": "answers until it is stopped; tests/inference/test_search_server.py does it",
    r"python bench/videomae.py": "takes minutes at the one size that VideoMAE has",
    r"model.push_to_hub\(\"user/name\"\).*": "uploads to the Hugging Face hub",
}


def documented() -> tuple[list[str], list[str]]:
    """(commands, blocks of Python) of all pages in their order, each once."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found: dict[str, None] = {}
    blocks: dict[str, None] = {}
    for piece in re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL):
        fence = FENCE.match(piece)
        if fence and fence[1] == "python":
            blocks[fence[2]] = None
        elif fence:
            words = (shlex.split(line, comments=True) for line in fence[2].splitlines() if INLINE.match(f"`{line}`"))
            found |= {shlex.join(line): None for line in words}
        else:
            found |= {" ".join(command.split()): None for command in INLINE.findall(piece)}
    return list(found), list(blocks)


COMMANDS, BLOCKS = documented()


def excused(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, command)), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """A folder with everything that documented commands name."""
    folder = tmp_path_factory.mktemp("readme")
    corpus = build_corpus(clips=24, progress=False)
    clips = list(read_manifest(corpus))[: len(NAMES)]
    (folder / "clips").mkdir()
    rows = []
    for name, clip in zip(NAMES, clips, strict=True):
        shutil.copy(clip.path, folder / "clips" / f"{name}_000000_000002.mp4")
        (folder / "clips" / f"{name}_000000_000002.txt").write_text("\n".join(clip.captions))
        rows.append((f"clips/{name}_000000_000002.mp4", " | ".join(clip.captions), clip.index % 2))
    splits = ["train"] * 6 + ["test"] * 2
    for file in ("clips.csv", "manifest.csv", "kinetics.csv", "esc10-fold-1.csv"):
        write_rows(
            folder / file,
            ("path", "caption", "label", "split"),
            [(*row, split) for row, split in zip(rows, splits, strict=True)],
        )
    write_rows(folder / "test.csv", ("path", "caption", "label"), rows)
    write_rows(
        folder / "kinetics-400_val.csv",
        ("label", "youtube_id", "time_start", "time_end", "split"),
        [("left", name, 0, 2, "val") for name in NAMES],
    )
    vectors = [f"{word}{' 0.5' * 16}\n" for word in dict.fromkeys(" ".join(clips[0].captions).split())]
    (folder / "GoogleNews-vectors-negative300.bin").write_text("".join(vectors))
    for name in ("dog", "triangle"):
        shutil.copy(clips[0].path, folder / f"{name}.mp4")
    (folder / "long").mkdir()
    write_clip(folder / "long" / "long.mp4", steady(5.0, 10), tone_burst(5.0, 1.0, 16_000), 16_000)
    (folder / "pictures").mkdir()
    pictures = []
    for name, clip in zip(NAMES, clips, strict=True):
        with av.open(str(clip.path)) as container:
            next(container.decode(video=0)).to_image().save(folder / "pictures" / f"{name}.png")
        pictures.append((f"{name}.png", name, clip.captions[0]))
    write_rows(folder / "pictures" / "captions.csv", ("file", "youtube_id", "caption"), pictures)
    for seed, name in enumerate(("vatt-mbs", "runs/ma_medium", "runs/scratch", "runs/tiny")):
        shutil.copytree(write_model(folder / "made" / name, corpus, seed), folder / name)
    return folder


def write_rows(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def test_readme_has_commands_and_excuses_are_used():
    assert len(COMMANDS) > 25
    lines = [*COMMANDS, *(line for block in BLOCKS for line in block.splitlines())]
    unused = [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in lines)]
    assert unused == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if not excused(command)])
def test_a_command_works(command, place, monkeypatch, request):
    words = [
        re.sub(r"(?<=^--nproc-per-node=)(\d+|N)$", "2", STAND_INS.get(word, word))
        for word in shlex.split(command)
        if word != "..."
    ]
    launcher, words = (
        (words[: words.index("-m")], words[words.index("-m") :]) if words[0] == "torchrun" else (words[:1], words[1:])
    )
    program, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    if program in NEEDS:
        pytest.importorskip(NEEDS[program])
    monkeypatch.chdir(official(place, request) if program == "vatt.official" else place)
    # What is a process of its own for each row takes longer than all the rest.
    for module in (model_steps, decode, fused_vs_reference):
        monkeypatch.setattr(module, "peak_memory", lambda *case: {"peak_bytes": 2, "step_bytes": 1})
    monkeypatch.setattr(youcook2, "run", lambda command, log: main_of(command[0])(command[1:]))
    units = gpu_report.correctness_units(True, "cpu")[:3]
    monkeypatch.setattr(gpu_report, "correctness_units", lambda dry, device: units)
    if program == "vatt.evaluate" and not {"--run", "--model"} & set(rest):
        rest = ["--help"]  # a page only names it here
    if not {"--resume", "--status"} & set(rest):
        rest += shlex.split(SHRINK.get(program, ""))
    if launcher[0] == "torchrun" or program in ("pydoc", "vatt_kernels.aot", "vatt.training.metrics_log"):
        if launcher[0] == "torchrun":
            options = get_args_parser().parse_args([*launcher[1:], "-m", program, *rest])
            done = torchrun(int(options.nproc_per_node), "-m", program, *rest)
        else:
            done = finished([sys.executable, "-m", program, *rest], env=environment(OMP_NUM_THREADS="1"))
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert main_of(program)(rest) in (0, None)


def main_of(program: str):
    """The `main` that `python -m program` or `python bench/program.py` calls; --help leaves it with code 0."""
    name = Path(program).stem if program.startswith("bench/") else program
    spec = importlib.util.find_spec(name)
    folder = spec is not None and spec.submodule_search_locations is not None
    main = importlib.import_module(f"{name}.__main__" if folder else name).main

    def call(arguments: list[str]) -> int | None:
        try:
            return main(arguments)
        except SystemExit as left:
            return left.code

    return call


def official(place: Path, request: pytest.FixtureRequest) -> Path:
    """A folder in which ckpt-500000 is a small checkpoint that the release's own code wrote."""
    folder = place / "official"
    if not folder.exists():
        fixtures = request.getfixturevalue("shared") / "parity" / "fixtures"
        folder.mkdir()
        shutil.copy(fixtures / "config.json", folder)
        for file in (fixtures / "ckpt_tx_fac").iterdir():
            shutil.copy(file, folder / re.sub(r"^.*?(?=\.index|\.data)", "ckpt-500000", file.name))
    return folder


def test_python_blocks_work(place, monkeypatch):
    monkeypatch.chdir(place)
    pytest.importorskip("huggingface_hub")
    for block in BLOCKS:
        kept = [line.replace("user/name", "vatt-mbs") for line in block.splitlines() if not excused(line)]
        exec("\n".join(kept), {})  # each works by itself, as it is pasted
    assert (place / "copy").is_dir()


def test_the_first_block_is_what_was_recorded(place, monkeypatch, capsys):
    """Its output is that of a trained model; here an untrained one says as much of the same file and texts."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import first_look

    record = json.loads(first_look.RECORD.read_text(encoding="utf-8"))
    block = first_look.block(record)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("```python") == readme.index(block), "run python .ci/first_look.py"
    *lines, _ = block.splitlines()[1:]
    assert len([line for line in lines if line and not line.startswith("#")]) == 3
    monkeypatch.chdir(place)
    exec("\n".join(lines), {})
    printed, shown = (ast.literal_eval(text) for text in (capsys.readouterr().out, lines[-1].removeprefix("# ")))
    assert sorted(text for text, _ in printed) == sorted(text for text, _ in shown)
    for ranked in (printed, shown):
        cosines = [cosine for _, cosine in ranked]
        assert cosines == sorted(cosines, reverse=True)
        assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert sum(file.stat().st_size for file in first_look.PICTURES.iterdir()) < 150_000
