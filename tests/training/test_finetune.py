"""The fine-tuning command as its users meet it, and its step against the official recordings."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from helpers.small_model import write_model

import vatt
from vatt import finetune
from vatt.checkpoints.training_checkpoint import load, load_latest
from vatt.config.finetuning import PRESETS, FinetuneConfig, FinetuneOptimConfig, WaveformConfig
from vatt.config.presets import mbs
from vatt.config.validation import check
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.crops import inception_box, inception_video, three_crops
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import build_corpus
from vatt.model.randomness import BatchRows
from vatt.official.init_source import read_source
from vatt.official.verify.models import check_gradients
from vatt.official.verify.recording import Fixtures, Recording
from vatt.ops import choose
from vatt.runtime.device import autocast_for
from vatt.training import batch_augmentation, finetuning_step, optimizers
from vatt.training.metrics_log import read_metrics

CPU = torch.device("cpu")
FEW = [
    "--batch-size=4",
    "--steps=6",
    "--rate=0.05",
    "--fused",
    "--set=data.workers=0",
    "--set=save_every=2",
    "--set=optim.warmup=1",
]


@pytest.fixture(scope="module")
def corpus(cache):
    return build_corpus(clips=24, progress=False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus):
    return write_model(tmp_path_factory.mktemp("pretrained"), corpus)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, corpus):
    """A PNG of the first frame of each clip, with the clip's label and split."""
    folder = tmp_path_factory.mktemp("pictures")
    with open(folder / "m.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for clip in read_manifest(corpus):
            with av.open(str(clip.path)) as container:
                next(container.decode(video=0)).to_image().save(folder / f"{clip.index}.png")
            writer.writerow((f"{clip.index}.png", clip.label, clip.split))
    return folder / "m.csv"


def run(*arguments) -> int:
    return finetune.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pretrained, corpus):
    """An uninterrupted run of 6 steps on sound, with mixup and DropToken."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("--task=audio", "--data", corpus, "--init", pretrained, "--out", out, *FEW) == 0
    return out


def losses(out):
    return [r["loss"] for r in read_metrics(out / "metrics.jsonl")]


def same_weights(a, b):
    a, b = load_latest(a / "checkpoints"), load_latest(b / "checkpoints")
    return a.step == b.step and all(torch.equal(a.model[name], b.model[name]) for name in b.model)


def test_a_run_leaves_all_it_promises(whole, corpus):
    assert {p.name for p in whole.iterdir()} >= {
        "config.json",
        "init.txt",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "loss.png",
        "result.json",
        "content.json",
        "predictions.csv",
        "per_class.csv",
    }
    result = json.loads((whole / "result.json").read_text())
    assert set(result["test"]["scores"]) == {"mAP", "AUC", "d-prime", "classes"}
    assert result["test"]["views"] == 4
    assert set(result["environment"]) >= {"argv", "commit", "versions", "operations"}
    assert "starts fresh: head.linear.weight" in (whole / "init.txt").read_text()
    model = vatt.load(whole)
    assert (model.modality, model.head.linear.out_features) == ("audio", 5)
    saved = json.loads((whole / "model" / "config.json").read_text())["classifier"]
    assert tuple(saved["labels"]) == read_manifest(corpus).labels


def test_video_on_a_larger_grid(tmp_path, pretrained, corpus):
    arguments = ("--task=video", "--data", corpus, "--init", pretrained, "--out", tmp_path / "run", "--size=96")
    assert run(*arguments, *FEW, "--steps=2") == 0
    assert "position.tables.1: 4 -> 6 rows" in (tmp_path / "run" / "init.txt").read_text()
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert set(test["scores"]) == {"top1", "top5", "mean_class_accuracy"}
    assert test["views"] == 12


def test_images_fill_one_row_of_voxels(tmp_path, pretrained, pictures):
    arguments = ("--task=image", "--data", pictures, "--init", pretrained, "--out", tmp_path / "run")
    assert run(*arguments, *FEW, "--steps=2") == 0
    model = vatt.load(tmp_path / "run")
    assert [len(table) for table in model.backbone.tokens["video"].position.tables] == [1, 4, 4]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["views"] == 3


def test_it_learns(tmp_path, pretrained, corpus):
    """The attribute of the label is in the sound; no mixing, no dropping, many rates above the release's."""
    arguments = ("--task=audio", "--loss=softmax", "--data", corpus, "--init", pretrained, "--out", tmp_path / "run")
    settings = ("--set=mixup=0", "--drop-rate=0", "--steps=60", "--batch-size=8", "--set=data.cache_gb=0.1")
    assert run(*arguments, *FEW, *settings, "--set=save_every=60") == 0
    assert np.mean(losses(tmp_path / "run")[-5:]) < 0.8 * np.mean(losses(tmp_path / "run")[:5])


KILLED = """
import os, signal, sys
from vatt import finetune
step = finetune.finetune_step
def deadly(*arguments):
    if arguments[4] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
finetune.finetune_step = deadly
sys.exit(finetune.main(sys.argv[1:]))
"""


def test_killed_and_resumed_is_bit_identical(whole, tmp_path, pretrained, corpus):
    out = tmp_path / "run"
    arguments = ["--task=audio", "--data", str(corpus), "--init", str(pretrained), "--out", str(out), *FEW]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(losses(out)) == 3
    assert run("--out", out, "--resume") == 0
    assert losses(out) == losses(whole)
    assert same_weights(out, whole)
    scores = [json.loads((folder / "result.json").read_text())["test"] for folder in (out, whole)]
    assert scores[0] == scores[1]


def test_sigterm_saves_and_exits_143(whole, tmp_path, pretrained, corpus, monkeypatch, capsys):
    out, step = tmp_path / "run", finetuning_step.finetune_step

    def interrupted(*arguments):
        if arguments[4] == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(finetune, "finetune_step", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run("--task=audio", "--data", corpus, "--init", pretrained, "--out", out, *FEW)
    assert stopped.value.code == 143
    assert "--resume" in capsys.readouterr().err
    assert load_latest(out / "checkpoints").step == 3
    monkeypatch.undo()
    (out / "config.json").write_text("{")  # the settings are in the checkpoint as well
    assert run("--out", out, "--resume") == 0
    assert losses(out) == losses(whole)


def test_a_loss_that_is_not_finite_makes_no_update(tmp_path, pretrained, corpus, monkeypatch, capsys):
    loss = finetuning_step.class_loss
    monkeypatch.setattr(finetuning_step, "class_loss", lambda *a, **k: loss(*a, **k) * float("nan"))
    out = tmp_path / "run"
    arguments = ("--task=audio", "--data", corpus, "--init", pretrained, "--out", out, *FEW)
    assert run(*arguments, "--set=max_nonfinite=2") == 1
    assert "2 steps in a row without a finite loss" in capsys.readouterr().err
    theirs, ours = vatt.load(pretrained).state_dict(), load_latest(out / "checkpoints").model
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("backbone."))
    assert len(read_metrics(out / "metrics.jsonl")[0]["clips"]) == 4


def test_clips_without_sound_are_replaced_and_named(tmp_path, pretrained, corpus, pictures, capsys):
    clips = [clip for clip in read_manifest(corpus) if clip.split == "train"][:6]
    rows = "".join(f"{clip.path},{clip.label},train\n" for clip in clips)
    picture = pictures.parent / "0.png"
    (tmp_path / "m.csv").write_text(f"path,label,split\n{rows}{picture},{clips[0].label},train\n")
    arguments = ("--task=audio", "--data", tmp_path / "m.csv", "--init", pretrained, "--out", tmp_path / "run")
    assert run(*arguments, *FEW) == 0
    said = capsys.readouterr()
    assert "0.png" in said.err
    assert "no scores" in said.out
    assert "0.png" in (tmp_path / "run" / "bad_clips.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task=video"], 2, "--data is missing"),
        (["--task=video", "--data={data}"], 2, "--init is missing"),
        (["--task=video", "--data={data}", "--init=nowhere"], 1, "neither a folder"),
        (["--task=video", "--data=nowhere.csv", "--init=none"], 2, "nowhere.csv"),
        (["--task=video", "--data={data}", "--init=none", "--model=tinny"], 2, "did you mean 'tiny'"),
        (["--task=video", "--data={data}", "--init={model}", "--model=tiny"], 2, "--model"),
        (["--task=video", "--data={data}", "--init=none", "--set=optim.layer_decay=0"], 2, "optim.layer_decay"),
        (["--task=video", "--data={data}", "--init=none", "--set=time_mask=1"], 2, "time_mask"),
        (["--task=audio", "--data={data}", "--init=none", "--set=waveform.speed=0.5"], 2, "waveform.speed"),
        (["--task=audio", "--data={data}", "--init=none", "--set=smoothing=0.1"], 2, "smoothing must be 0"),
        (["--task=image", "--data={data}", "--init=none", "--pretrain-steps=9"], 2, "pretrain_steps must be 0 but for"),
        (["--task=audio", "--data={data}", "--init=none", "--pretrain-steps=3", "--steps=3"], 2, "fewer than the 3"),
        (["--task=image", "--data={data}", "--init=none", "--frames=8"], 2, "one row of voxels"),
        (["--task=video", "--data={data}", "--init=none", "--drop-rate=1"], 2, "model.drop.rate"),
        (["--task=video", "--data={data}", "--init=none", "--set=optim.rat=1"], 2, "did you mean 'optim.rate'"),
        (["--task=video", "--data={data}", "--init=none", "--set=data.train_split=val"], 2, "no rows of split 'val'"),
        (["--task=video", "--data={unlabelled}", "--init=none"], 2, "no label"),
        (["--task=video", "--data={several}", "--init=none"], 2, "--loss sigmoid"),
        (["--resume"], 2, "--out"),
        (["--out={run}", "--task=audio", "--data={data}", "--init=none"], 2, "already holds a run"),
        (["--out={run}", "--resume", "--task=video"], 2, "leave --task out"),
        (["--out={run}", "--resume", "--preset=small"], 2, "leave --preset out"),
        (["--out={run}", "--resume", "--set=optim.optimizer=adamw"], 2, "optim.optimizer: 'sgd' -> 'adamw'"),
        (["--out={run}", "--resume", "--loss=softmax"], 2, "loss: 'sigmoid' -> 'softmax'"),
        (["--out={run}", "--resume", "--steps=3"], 2, "step 6 already"),
        (["--out={run}", "--resume", "--data={several}"], 1, "changed since the run began"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    arguments, code, message, tmp_path, monkeypatch, capsys, corpus, pretrained, whole
):
    monkeypatch.chdir(tmp_path)
    clip = read_manifest(corpus)[0].path
    (tmp_path / "unlabelled.csv").write_text(f"path\n{clip}\n")
    (tmp_path / "several.csv").write_text(f"path,label\n{clip},a | b\n{clip},a\n")
    shutil.copytree(whole, tmp_path / "whole")
    names = {"data": corpus, "model": pretrained, "run": tmp_path / "whole"}
    names |= {"unlabelled": "unlabelled.csv", "several": "several.csv"}
    assert run(*(argument.format(**names) for argument in arguments)) == code
    assert message in capsys.readouterr().err


def test_the_small_preset_resumes_to_the_bit(tmp_path, pretrained, corpus):
    """AdamW, a head that is trained alone at first, layers of different rates, and all that is drawn for sounds."""
    arguments = ("--task=audio", "--preset=small", "--data", corpus, "--init", pretrained, "--batch-size=4", "--fused")
    few = ("--set=data.workers=0", "--set=save_every=2", "--set=optim.warmup=1", "--set=optim.head_steps=2")
    assert run(*arguments, *few, "--steps=4", "--out", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(max((tmp_path / "cut" / "checkpoints").glob("step-*")))
    assert run("--out", tmp_path / "cut", "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    before, (alone, last) = (
        read_source(pretrained),
        (load(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}").model for step in (2, 4)),
    )
    backbone = [name for name in last if name.startswith("backbone.")]
    assert all(torch.equal(alone[name], before[name]) for name in backbone)
    assert not any(torch.equal(last[name], before[name]) for name in backbone if name.endswith("weight"))


def test_sound_is_learned_without_labels_first_and_resumed_to_the_bit(tmp_path, corpus):
    arguments = ("--task=audio", "--preset=small", "--data", corpus, "--init=none", "--batch-size=4", "--steps=4")
    few = ("--set=data.workers=0", "--set=save_every=1", "--set=keep_checkpoints=9", "--set=optim.warmup=1")
    assert run(*arguments, *few, "--pretrain-steps=3", "--out", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    assert run("--out", tmp_path / "cut", "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    records = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [r["pretraining"] for r in records] == [True, True, True, False]
    assert records[3]["rate"] == 0  # a schedule of its own
    before, after = (load(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}").model for step in (1, 3))
    same = {name.split(".")[0] for name in after if torch.equal(before[name], after[name])}
    assert same == {"head"}
    unlabelled = load(tmp_path / "whole" / "checkpoints" / "step-00000003").state["optimizer"]["param_groups"]
    assert len({group["scale"] for group in unlabelled}) == 5  # the head, three layers, tokens
    assert len({group["lr"] for group in unlabelled}) == 1
    assert run("--out", tmp_path / "cut", "--resume", "--pretrain-steps=2") == 2


def test_presets_are_the_release(capsys):
    video, audio, image = (PRESETS[task](mbs().model) for task in ("video", "audio", "image"))
    for config in (video, audio, image):
        check(config)
        assert config.optim == FinetuneOptimConfig(rate=0.005, warmup=2_500, momentum=0.9, clip=0.75)
        assert (config.steps, config.save_every, config.keep_checkpoints) == (100_000, 5_000, 10)
    assert (video.model.video.fps, video.head_dropout, video.smoothing) == (12.5, 0.5, 0.1)
    assert (audio.model.audio.rate, audio.model.audio.samples / audio.model.audio.rate) == (24_000, 6.4)
    assert (audio.loss, audio.mixup, audio.head_dropout) == ("sigmoid", 5.0, 0.0)
    assert image.model.video.grid == (1, 14, 14)
    assert run("--task=video", "--data=x.csv", "--init=none", "--steps=1000", "--print-config") == 0
    assert json.loads(capsys.readouterr().out)["optim"]["warmup"] == 25  # the share of the release's steps


def recorded_batch(recording: Recording, audio: bool) -> Batch:
    x, labels = recording.input("in.train"), recording.input("in.onehot")
    nothing, ones = torch.empty(len(x), 0), torch.ones(len(x))
    video, sound = (nothing, x[..., 0]) if audio else (x, nothing)
    return Batch(video, sound, nothing, ones, ones, ones, labels.argmax(1), labels, [], [], [], 0.0, 0.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["finetune_video", "finetune_audio", "finetune_video_from_agnostic"])
def test_a_step_is_the_releases(shared, name, fused):
    fixtures = Fixtures(shared / "parity" / "fixtures", choose(fused, CPU))
    with np.load(fixtures.folder / f"{name}.npz") as npz:
        recording = Recording(name, dict(npz), fixtures)
    model = fixtures.load(f"ckpt_{name}")
    classifier = model.module  # in eval mode: recorded without dropout
    audio = classifier.modality == "audio"
    free = FinetuneConfig(
        task="audio" if audio else "video",
        loss="sigmoid" if audio else "softmax",
        optim=FinetuneOptimConfig(rate=0.5, warmup=0, clip=0.0),
    )
    before = {key: value.detach().clone() for key, value in classifier.named_parameters()}

    def step(config: FinetuneConfig) -> dict:
        classifier.load_state_dict(before)
        optimizer = optimizers.SGD(classifier.parameters(), config.optim.rate, config.optim.momentum)
        batch = recorded_batch(recording, audio)
        return finetuning_step.finetune_step(classifier, optimizer, batch, config, 0, autocast_for(CPU, torch.float32))

    record = step(free)
    recording.check("single.loss", torch.tensor(record["loss"]))
    check_gradients(recording, "grad.", model)
    assert [row.array for row in recording.rows if not row.passed] == []
    gradients = {key: p.grad.clone() for key, p in classifier.named_parameters()}
    for key, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] - 0.5 * gradients[key])
    limit = record["gradient_norm"] / 3
    step(FinetuneConfig(task=free.task, loss=free.loss, optim=FinetuneOptimConfig(rate=0.5, warmup=0, clip=limit)))
    for key, parameter in classifier.named_parameters():
        share = 1 / 3 if key.startswith("backbone.") else 1.0
        torch.testing.assert_close(parameter.grad, share * gradients[key], rtol=1e-4, atol=1e-9)


def test_sounds_and_labels_are_mixed_alike():
    x = torch.eye(16)
    sound, labels = batch_augmentation.mix(x, x, 5.0, seed=3)
    assert torch.equal(sound, labels)
    torch.testing.assert_close(sound.sum(1), torch.ones(16))
    shares = sound.diagonal()
    assert len(set(shares.tolist())) > 10  # one share a clip
    assert torch.equal(batch_augmentation.mix(x, x, 5.0, seed=3)[0], sound)
    assert not torch.equal(batch_augmentation.mix(x, x, 5.0, seed=4)[0], sound)


def test_frames_are_mixed_as_floats():
    frames = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1, 1).expand(2, 4, 2, 2, 3)
    mixed, labels = batch_augmentation.mix(frames, torch.eye(2), 5.0, seed=3)
    torch.testing.assert_close(mixed[:, 0, 0, 0, 0], labels @ torch.tensor([-1.0, 1.0]))


def test_each_part_of_a_batch_draws_what_the_whole_does():
    sound = torch.randn(6, 50)
    config = WaveformConfig(turn=True, speed=1.2, gain=2.0)
    whole = batch_augmentation.play(sound, config, 7, BatchRows(0, 6))
    parts = [batch_augmentation.play(sound[i : i + 2], config, 7, BatchRows(i, 6)) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(batch_augmentation.play(sound, WaveformConfig(), 7, BatchRows(0, 6)), sound)
    turned = batch_augmentation.play(sound, WaveformConfig(turn=True), 7, BatchRows(0, 6))
    assert torch.equal(turned.sort(1).values, sound.sort(1).values)
    assert not torch.equal(turned, sound)


def test_a_band_is_taken_out_and_gains_are_drawn_for_the_whole_batch():
    sound = torch.randn(6, 4_000)
    masked = batch_augmentation.colour(sound, WaveformConfig(band_mask=0.5), 16_000, 7, BatchRows(0, 6))
    kept = (torch.fft.rfft(masked).abs() / torch.fft.rfft(sound).abs())[:, 1:-1]
    gone = kept < 0.1
    torch.testing.assert_close(kept[~gone], torch.ones(int((~gone).sum())), rtol=1e-2, atol=1e-2)
    assert gone.any(1).sum() >= 5
    assert all((row.int().diff() == 1).sum() + row[0] <= 1 for row in gone)  # one band
    config = WaveformConfig(equalise=0.5)
    whole = batch_augmentation.colour(sound, config, 16_000, 7, BatchRows(0, 6))
    torch.testing.assert_close(whole[2:4], batch_augmentation.colour(sound[2:4], config, 16_000, 7, BatchRows(2, 6)))
    assert not torch.allclose(whole, sound, atol=0.1)


def test_a_faster_sound_has_a_higher_tone():
    tone = torch.sin(torch.arange(8_000) * (2 * torch.pi * 100 / 8_000))[None]
    fast = batch_augmentation._faster(tone[0], 1.25)
    assert len(fast) == 8_000
    assert torch.fft.rfft(fast).abs().argmax() == 125


@pytest.mark.parametrize(("clips", "filled"), [(torch.ones(8, 40), 0), (torch.zeros(8, 40, 2, dtype=torch.uint8), 127)])
def test_one_span_of_a_clip_is_left_out(clips, filled):
    left = batch_augmentation.leave_out_span(clips, 0.5, 3, BatchRows(0, 8))
    gone = (left == filled).reshape(8, 40, -1).all(-1)
    assert gone.sum(1).max() > 5
    assert gone.sum(1).max() <= 20
    assert all((row.int().diff() == 1).sum() + row[0] <= 1 for row in gone)  # one span
    assert torch.equal(left[~gone], clips[~gone])


def test_inception_boxes_lie_inside_and_in_range():
    rng = np.random.default_rng(0)
    boxes = [inception_box(120, 160, (0.08, 1.0), (0.5, 2.0), rng) for _ in range(500)]
    areas = np.array([h * w / (120 * 160) for _, _, h, w in boxes])
    assert all(min(t, x) >= 0 and t + h <= 120 and x + w <= 160 for t, x, h, w in boxes)
    assert areas.min() >= 0.1
    assert areas.min() < 0.15
    assert areas.max() > 0.8
    assert all(0.48 <= w / h <= 2.1 for _, _, h, w in boxes)
    assert inception_box(10, 200, (0.9, 1.0), (1.0, 1.0), rng) == (0, 0, 10, 200)  # nothing fits


def test_crops_show_what_they_should():
    frames = np.broadcast_to(np.arange(0, 240, 3, dtype=np.uint8)[None, None, :, None], (2, 40, 80, 3)).copy()
    crops = three_crops(frames, 40)
    assert crops.shape == (3, 2, 40, 40, 3)
    for crop, start in zip(crops, (0, 20, 40), strict=True):
        assert np.array_equal(crop, frames[:, :, start : start + 40])
    still = replace(FinetuneConfig().data.augment, flip=False, colour_jitter=0.0)
    whole = inception_video(frames[:, :, :40], 40, (1.0, 1.0), (1.0, 1.0), still, np.random.default_rng(0))
    assert np.array_equal(whole, frames[:, :, :40])
    mirrored = {
        bool(
            np.array_equal(
                inception_video(
                    frames[:, :, :40],
                    40,
                    (1.0, 1.0),
                    (1.0, 1.0),
                    replace(still, flip=True),
                    np.random.default_rng(seed),
                ),
                frames[:, :, 39::-1],
            )
        )
        for seed in range(8)
    }
    assert mirrored == {False, True}


@pytest.mark.parametrize(
    ("flags", "before", "decay"), [((), 2000, 0.3), (("--pretrain-steps=0",), 0, 1.0), (("--steps=2",), 1, 0.3)]
)
def test_lower_layers_that_learned_nothing_without_labels_learn_as_fast_as_others(flags, before, decay):
    wanted = ("--task=audio", "--preset=small", "--data=x.csv", "--init=none")
    config = finetune.resolve_config(finetune.parse_arguments([*wanted, *flags]))
    assert (config.pretrain_steps, config.optim.layer_decay) == (before, decay)
