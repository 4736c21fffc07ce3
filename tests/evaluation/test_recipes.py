"""Every recipe's commands: understood by the commands they name, each file made before it is used, and run end to end
on a stand-in of a few clips for each data set."""

import csv
import json
import os
import re
import shlex
import wave
from dataclasses import replace
from pathlib import Path

import av
import paper_tables
import pytest
import torch
from helpers.small_model import write_model

from vatt import evaluate, finetune, train
from vatt.checkpoints.model_folder import write_config
from vatt.config.finetuning import FinetuneConfig
from vatt.config.model import ModelConfig
from vatt.config.presets import preset, tiny
from vatt.config.pretraining import Config
from vatt.config.serialization import differences, to_dict
from vatt.data.manifest import read_manifest
from vatt.data.sources import __main__ as sources
from vatt.data.synthetic import build_corpus
from vatt.evaluation import classification, linear_probe
from vatt.model.vatt import VATT
from vatt.official.__main__ import main as official_main
from vatt.recipes.__main__ import commands, main, score_command, settings, source_commands, start
from vatt.recipes.rows import RECIPES

IDS = [f"clip{i:07d}" for i in range(6)]  # as long as those of YouTube
LABELS = ("left", "right", "left", "right", "left", "right")
# Small, short and on the CPU; the rest is the recipe's own.
TUNING = "--steps 2 --batch-size 2 --size 64 --frames 16 --device cpu --set data.workers=0 --set save_every=2"


def words(command):
    program, flag, module, *rest = shlex.split(command)
    assert (program, flag) == ("python", "-m")
    return module, rest


def test_a_recipe_for_every_number():
    counts = {table: sum(one.table == table for one in RECIPES.values()) for table in range(1, 7)}
    assert counts == {1: 12, 2: 2, 3: 2, 4: 4, 5: 20, 6: 6}


def test_numbers_are_the_papers(shared):
    printed = (shared / "paper-tables.md").read_text()
    tables = dict(enumerate(re.split(r"^## Table \d", printed, flags=re.M)[1:], 1))
    for one in RECIPES.values():
        rows = [line for line in tables[one.table].splitlines() if line.startswith("|")]
        if one.table <= 4:
            rows = [row for row in rows if one.row.removesuffix(" from scratch") in row]
        for value in one.paper.values():
            assert any(re.search(rf"[ |]{value:g}(\.0)?[ |/]", row) for row in rows), (one.name, value)


@pytest.mark.parametrize("name", RECIPES)
def test_commands_are_understood_and_follow_each_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = set()
    for command in commands(RECIPES[name]):
        if command.startswith("cp "):
            assert shlex.split(command)[2].rpartition("/")[0] in made
            continue
        module, rest = words(command)
        if module == "vatt.official":
            assert official_main(rest) == 1  # understood, and the checkpoint is not there
            made.add(rest[rest.index("--out") + 1])
            continue
        if module == "vatt.data.sources":
            args = sources.parse_arguments(rest)
            assert args.format in sources.EXAMPLES
        elif module == "vatt.train":
            args = train.parse_arguments(rest)
            assert isinstance(train.resolve_config(args), Config)
            assert args.data in made
        elif module == "vatt.finetune":
            args = finetune.parse_arguments(rest)
            assert {args.data, args.init} <= {*made, "none"}
        else:
            assert module == "vatt.evaluate"
            args = evaluate.parse_arguments(rest)
            evaluate.check_arguments(args)
            assert {*args.data, str(args.run)} <= made
        made.add(str(args.out))
    assert str(args.out) == f"runs/{name}"


def write_header(path: Path, sizes: ModelConfig) -> None:
    """A file of weights that says their shapes and takes no room on the disk for their zeros."""
    with torch.device("meta"):
        weights = VATT(sizes).state_dict()
    header, end = {}, 0
    for name, x in weights.items():
        begin, end = end, end + x.nbytes
        dtype = {torch.float32: "F32", torch.int64: "I64"}[x.dtype]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("name", [one.name for one in RECIPES.values() if one.tuned and not one.scratch])
def test_settings_are_what_the_command_makes_of_the_checkpoint(name, tmp_path, monkeypatch):
    one = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / start(one)
    folder.mkdir()
    write_config(folder, preset(one.model), {})
    write_header(folder / "model.safetensors", preset(one.model).model)
    wanted = settings(one)
    assert isinstance(wanted, FinetuneConfig)
    got = finetune.resolve_config(finetune.parse_arguments(words(score_command(one))[1]))
    assert differences(wanted, got) == [("init", "", str(folder))]
    assert wanted.eval_windows * wanted.eval_crops == {"video": 12, "audio": 4, "image": 3}[one.task]


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """A folder with small models under the recipes' names, and each data set in its native layout: six clips of two
    classes."""
    folder = tmp_path_factory.mktemp("place")
    corpus = build_corpus(clips=24, progress=False)
    clips = [clip.path for clip in read_manifest(corpus)[: len(IDS)]]
    model = write_model(folder / "models", corpus)
    for name in ("vatt-bbs", "vatt-mbs", "runs/mbs-drop-50"):
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(model, folder / name)

    def media(at, name="{}.mp4"):
        (folder / at).mkdir(parents=True)
        for number, clip in enumerate(clips):
            os.link(clip, folder / at / name.format(IDS[number], number))

    def table(at, *rows):
        (folder / at).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / at, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    def lines(at, *text):
        (folder / at).parent.mkdir(parents=True, exist_ok=True)
        (folder / at).write_text("\n".join(text) + "\n")

    both = list(zip(IDS, LABELS, strict=True))
    media("kinetics400", "{0}_000000_000002.mp4")
    for split, chosen in (("train", both[:4]), ("val", both[4:])):
        table(
            f"kinetics-400_{split}.csv",
            ("label", "youtube_id", "time_start", "time_end", "split"),
            *((label, video, 0, 2, split) for video, label in chosen),
        )
        lines(
            f"{'training' if split == 'train' else 'validation'}Set.csv",
            *(f"{label}/{video}.mp4,{label},3,1" for video, label in chosen),
        )
        table(
            f"LOC_{split}_solution.csv",
            ("ImageId", "PredictionString"),
            *((video, f"n0{label} 1 2 3 4 n0{label} 5 6 7 8") for video, label in chosen),
        )
    media("Moments_in_Time_Raw")
    media("audioset", "Y{0}.mp4")
    for name, chosen in (("unbalanced_train", both[:2]), ("balanced_train", both[2:4]), ("eval", both[4:])):
        lines(
            f"{name}_segments.csv",
            "# a comment",
            *(f'{video}, 0.000, 10.000, "/m/{label},/m/both"' for video, label in chosen),
        )
    table(
        "class_labels_indices.csv",
        ("index", "mid", "display_name"),
        *((i, f"/m/{name}", name) for i, name in enumerate(("left", "right", "both"))),
    )
    pictures = folder / "ILSVRC" / "Data" / "CLS-LOC"
    pictures.mkdir(parents=True)
    for video, clip in zip(IDS, clips, strict=True):
        with av.open(str(clip)) as container:
            next(container.decode(video=0)).to_image().save(pictures / f"{video}.JPEG")
    media("youcook2")
    steps = {"subset": "validation", "annotations": [{"segment": [0, 2], "sentence": "a red shape moves"}]}
    lines("youcookii_annotations_trainval.json", json.dumps({"database": dict.fromkeys(IDS, steps)}))
    media("MSRVTT/videos/all", "video{1}.mp4")
    table(
        "MSRVTT_JSFUSION_test.csv",
        ("key", "vid_key", "video_id", "sentence"),
        *((f"ret{i}", f"msr{i}", f"video{i}", "a blue shape") for i in range(len(IDS))),
    )
    media("hmdb51")
    media("UCF-101")
    for n in (1, 2, 3):
        tested = IDS[2 * n - 2 : 2 * n]
        for label in set(LABELS):
            lines(
                f"testTrainMulti_7030_splits/{label}_test_split{n}.txt",
                *(f"{video}.avi {2 if video in tested else 1}" for video, own in both if own == label),
            )
        names = {video: f"{label}/{video}.avi" for video, label in both}
        lines(f"ucfTrainTestlist/trainlist0{n}.txt", *(f"{names[v]} 1" for v in IDS if v not in tested))
        lines(f"ucfTrainTestlist/testlist0{n}.txt", *(names[v] for v in tested))
    (folder / "audio").mkdir()
    for video in IDS:
        with wave.open(str(folder / "audio" / f"{video}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(video.encode() * 1500)
    table(
        "meta/esc50.csv",
        ("filename", "fold", "target", "category", "esc10"),
        *((f"{video}.wav", min(i + 1, 5), 0, label, "True") for i, (video, label) in enumerate(both)),
    )
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "k400-medium",
        "mit-base",
        "audioset-base",
        "imagenet-base",
        "youcook2-mbs",
        "msrvtt-drop-50",
        "hmdb51-drop-50",
        "ucf101-drop-50",
        "esc50-drop-50",
    ],
)
def test_from_annotation_files_to_the_score(name, place, monkeypatch):
    one = RECIPES[name]
    monkeypatch.chdir(place)
    monkeypatch.setattr(linear_probe, "EPOCHS", 2)
    monkeypatch.setattr(classification, "draw_confusion", lambda *_: None)
    for command in source_commands(one):
        assert sources.main(words(command)[1]) == 0
    module, rest = words(score_command(one))
    if module == "vatt.finetune":
        changes = TUNING.replace("--frames 16", "") if one.task == "image" else TUNING
        assert finetune.main([*rest, *changes.split()]) == 0
    else:
        assert evaluate.main([*rest, "--workers", "0", "--device", "cpu"]) == 0
    result = json.loads((place / "runs" / name / "result.json").read_text())
    if one.task == "retrieve":
        scores = result["retrieval"]["text_to_video"]
        assert {"text_to_video", "text_to_video_cosine"} <= set(result["retrieval"])
    else:
        scores = result["test"]["scores"] if one.tuned else next(iter(result["probe"].values()))["scores"]
    assert set(one.paper) <= set(scores)


def test_the_command_prints_what_a_shell_can_run(capsys):
    assert main(["k400-large", "esc50-drop-0"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line and not line.startswith("#")] == [
        *commands(RECIPES["k400-large"]),
        *commands(RECIPES["esc50-drop-0"]),
    ]
    assert main(["--table", "2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "audioset-base",
        "audioset-ma-medium",
    ]
    assert main(["k400-larg"]) == 2
    assert "did you mean 'k400-large'?" in capsys.readouterr().err


def result_of(one, **changes):
    """A result.json as the recipe's last command leaves it."""
    wanted = settings(one)
    environment = {"device": "cpu", "commit": "a" * 40, "dirty": False, "argv": ["-m", "vatt.finetune"]}
    scores = {"top1": 0.5, "top5": 0.75}
    if isinstance(wanted, FinetuneConfig):
        wanted = replace(wanted, init="vatt-mbs", **changes)
        return {"finetune": to_dict(wanted), "environment": environment, "test": {"scores": scores, "labelled": 7}}
    model, found = to_dict(preset(one.model).model), {"R@10": 0.3, "median_rank": 40.0, "candidates": 7}
    done = {"task": "retrieve", "windows": 4, "score": "both", "video": {**model["video"], "fps": 12.5}, **changes}
    return {"evaluate": done, "environment": environment, "model": model, "retrieval": {"text_to_video": found}}


def test_the_tables_never_mix_what_was_measured_with_the_paper(tmp_path, capsys):
    def show(*arguments):
        code = paper_tables.main([*arguments, "--reports", str(tmp_path / "reports")])
        printed = capsys.readouterr()
        return code, {line.split(" | ")[0].strip("| "): line for line in printed.out.splitlines()}, printed.err

    code, lines, _ = show()
    assert code == 0
    assert lines["VATT-Medium"].count("not measured (no data)") == 3
    assert "81.1 / 95.6" in lines["VATT-Medium"]
    (tmp_path / "k400-medium").mkdir()
    file = tmp_path / "k400-medium" / "result.json"
    file.write_text(json.dumps(result_of(RECIPES["k400-medium"])))
    retrieved = tmp_path / "reports" / "a-machine" / "recipes" / "youcook2-mbs.json"
    retrieved.parent.mkdir(parents=True)
    retrieved.write_text(json.dumps(result_of(RECIPES["youcook2-mbs"])))
    code, lines, _ = show(str(file))
    assert code == 0
    assert "| 81.1 / 95.6 | 50.0 / 75.0 (7 clips) | 82.4 / 96.1 | not measured" in lines["VATT-Medium"]
    assert "| 45.5 / 13 | 30.0 / 40 (7 clips) | 29.7 / 49 | not measured" in lines["VATT-MBS (batch 2048, 4 epochs)"]
    assert lines["k400-medium"].endswith("| cpu | aaaaaaaaa | `python -m vatt.finetune` |")
    # Neither a stand-in nor another protocol gets into them.
    for name, changes in (
        ("k400-medium", {"model": tiny().model}),
        ("k400-medium", {"steps": 7}),
        ("youcook2-mbs", {"windows": 1}),
    ):
        file.write_text(json.dumps(result_of(RECIPES[name], **changes)))
        code, lines, error = show(f"{name}={file}")
        assert (code, lines) == (1, {})
        assert "do not belong in the tables" in error
    assert show(f"k400-medium={retrieved}")[0] == 1
    assert show(f"k401-medium={file}")[0] == 2
