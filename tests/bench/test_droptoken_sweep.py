"""The DropToken sweep: probes and folds are honest, rows survive a crash, the page says what the JSON says."""

import csv
from dataclasses import replace

from harness import report as harness
from harness.pages import write_page

import droptoken_sweep
import esc10_small
import numpy as np
import pytest
import torch
from helpers.small_model import write_model
from pages import droptoken as droptoken_page
from workloads import esc10_from_scratch, frozen_model, model_steps

from vatt.config.model import EncoderConfig
from vatt.data.manifest import read_manifest, write_manifest
from vatt.evaluation.linear_probe import STRENGTHS, fit, linear_probe
from vatt.model.tokens import AudioTokens

_SMALL = esc10_from_scratch.recipe()
RECIPE = replace(
    _SMALL,
    model=replace(
        _SMALL.model,
        audio=replace(_SMALL.model.audio, rate=800, samples=2_560, patch=128, level=8.0),
        audio_encoder=EncoderConfig(32, 1, 2, 16, 32, 0.0),
    ),
    data=replace(_SMALL.data, batch_size=20),
    waveform=replace(_SMALL.waveform, speed=1.02),
    optim=replace(_SMALL.optim, rate=3e-3, warmup=8),
    steps=80,
    pretrain_steps=0,
)


@pytest.fixture(scope="module")
def clips() -> esc10_from_scratch.Esc10Clips:
    """50 tones, a frequency a class, in 5 folds."""
    labels, folds = torch.arange(50) % 10, torch.arange(50) // 10 + 1
    time = torch.arange(4_000) / RECIPE.model.audio.rate
    waves = torch.sin(2 * torch.pi * (30 * (labels[:, None] + 1) * time + folds[:, None] / 5))
    return esc10_from_scratch.Esc10Clips(waves, labels, folds, tuple("abcdefghij"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared):
    """The layout of ESC-10 with two real clips of each fold, of ten classes."""
    source = shared / "data" / "esc10"
    with open(source / "esc10.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [
        next(r for r in rows if int(r["label"]) == label and int(r["fold"]) == label % 5 + 1) for label in range(10)
    ]
    out = tmp_path_factory.mktemp("esc10")
    with open(out / "esc10.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "fold", "label", "category"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"file": str(source / row["file"])} for row in chosen)
    return out


def test_the_probe_finds_the_one_minimum():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(150, 8, generator=generator, dtype=torch.float64)
    labels = features[:, :3].argmax(1)
    weight, bias = fit(features, labels, 3, 1e-2)
    weight.requires_grad_()
    bias.requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight + bias, labels) + 0.5e-2 * weight.square().sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5
    fresh = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    target = fresh[:, :3].argmax(1)
    # Scale and offset of a feature are no information: the probe standardises.
    scores = linear_probe(1e3 * features + 7, labels, 1e3 * fresh + 7, target, 3)
    assert scores["top1"] > 0.85
    assert scores == linear_probe(1e3 * features + 7, labels, 1e3 * fresh + 7, target, 3)


def test_the_probe_does_not_see_test_labels():
    generator = torch.Generator().manual_seed(2)
    features, fresh = (torch.randn(200, 64, generator=generator) for _ in range(2))
    labels, target = (torch.randint(0, 4, (200,), generator=generator) for _ in range(2))
    scores = linear_probe(features, labels, fresh, target, 4)
    assert scores["top1"] < 0.4  # noise: chance is 0.25
    assert scores["strength"] in STRENGTHS


def test_splits_are_train_and_test_or_folds():
    split = np.array(["train", "test", "train", "", "test"])
    assert [(a.tolist(), b.tolist()) for a, b in frozen_model.splits_of(split)] == [
        ([True, False, True, False, False], [False, True, False, False, True])
    ]
    folds = frozen_model.splits_of(np.array(["1", "2", "", "3"]))
    assert [b.nonzero()[0].tolist() for _, b in folds] == [[0], [1], [3]]
    assert all(not (a & b).any() and not a[2] for a, b in folds)
    assert frozen_model.splits_of(np.array(["train", "train"])) == []


def test_tones_are_learned_with_dropped_tokens_and_tested_with_all(clips, monkeypatch):
    counts = {True: set(), False: set()}
    forward = AudioTokens.forward

    def counted(self, samples, keep=None, seed=0, rows=None):
        tokens, mask = forward(self, samples, keep, seed, rows)
        counts[self.training].add(tokens.shape[1])
        return tokens, mask

    monkeypatch.setattr(AudioTokens, "forward", counted)
    row = esc10_from_scratch.train_fold(clips, 3, 0.5, 1, RECIPE)
    assert counts == {True: {11}, False: {21}}
    assert row["top1"] >= 0.8
    assert (row["clips"], sum(row["right"]) / 10) == (10, pytest.approx(row["top1"]))


def test_a_fold_is_never_trained_on_and_repeats_exactly(clips, monkeypatch):
    seen = []
    batch = esc10_from_scratch.training_batch

    def recorded(clips, chosen, samples):
        seen.append(chosen.tolist())
        return batch(clips, chosen, samples)

    monkeypatch.setattr(esc10_from_scratch, "training_batch", recorded)
    short = replace(RECIPE, steps=4)
    rows = [esc10_from_scratch.train_fold(clips, 2, rate, 1, short) for rate in (0.0, 0.5, 0.0)]
    trained = {clip for chosen in seen[:4] for clip in chosen}
    assert trained == set(range(50)) - set(range(10, 20))
    assert seen[:4] == seen[4:8]  # all rates see the same clips
    assert rows[0]["final_loss"] == rows[2]["final_loss"] != rows[1]["final_loss"]


def small(monkeypatch):
    """A sweep that takes seconds; files that someone edits meanwhile do not make it another program."""
    monkeypatch.setattr(harness, "_sources", lambda: "one")
    monkeypatch.setattr(esc10_from_scratch, "recipe", lambda quick: replace(RECIPE, steps=8))


def test_real_clips_make_rows_and_a_crash_loses_none(folder, tmp_path, monkeypatch):
    small(monkeypatch)
    argv = ["--quick", "--only", "esc10", "--esc10", str(folder), "--folds", "1", "2", "--out", str(tmp_path)]
    train, made = esc10_from_scratch.train_fold, []

    def crashing(clips, fold, rate, seed, recipe, **options):
        if len(made) == 3:
            raise OSError("power cut")
        made.append((fold, rate))
        return train(clips, fold, rate, seed, recipe, **options)

    monkeypatch.setattr(esc10_from_scratch, "train_fold", crashing)
    assert droptoken_sweep.main(argv) == 1
    assert made == [(1, 0.5), (1, 0.0), (2, 0.5)]  # every rate of a fold before the next fold
    path = next(tmp_path.glob("*/droptoken_sweep.json"))
    begun = harness.load(path)
    assert not begun.finished
    monkeypatch.setattr(esc10_from_scratch, "train_fold", train)
    assert droptoken_sweep.main([*argv, "--resume"]) == 0
    report = harness.load(path)
    assert report.finished
    assert report.rows[: len(begun.rows)] == begun.rows
    rows = [row for row in report.rows if row["kind"] == "esc10"]
    assert [(r["fold"], r["drop_rate"]) for r in rows] == [*made, (2, 0.0)]
    assert all(0 <= r["top1"] <= 1 and r["gflops"] > 0 for r in rows)
    lines = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    mean = 100 * np.mean([r["top1"] for r in rows if r["drop_rate"] == 0.5])
    line = next(line for line in lines if line["drop_rate"] == "0.5")
    assert float(line["ESC-10, top-1 from scratch"]) == pytest.approx(mean)
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert path.with_suffix(".md").read_text() == write_page(report, droptoken_page.REPORT_PAGE)


def test_five_folds_are_measured_over_several_sittings(folder, tmp_path, monkeypatch):
    small(monkeypatch)
    monkeypatch.setattr(esc10_from_scratch, "recipe", lambda quick: replace(RECIPE, steps=8))
    argv = ["--quick", "--esc10", str(folder), "--folds", "1", "2", "--out", str(tmp_path), "--processes", "1"]
    assert esc10_small.main(argv) == 0
    path = next(tmp_path.glob("*/esc10_small.json"))
    first = harness.load(path).rows
    alone = harness.load(path)
    alone.rows, alone.settings["folds"] = first[:1], [1]
    assert "| 50% | – | – |" not in esc10_small.page(alone)
    assert "| 50% | 1 |" in esc10_small.page(alone)
    assert esc10_small.main([*argv, "--resume", "--drop-rates", "0.5", "0", "0.75", "--seeds", "1", "2"]) == 0
    report = harness.load(path)
    assert report.rows[:2] == first
    made = [(r["drop_rate"], r["seed"], r["fold"]) for r in report.rows]
    assert made[2:] == [
        (0, 1, 1),
        (0, 1, 2),
        (0.75, 1, 1),
        (0.75, 1, 2),
        (0.5, 2, 1),
        (0.5, 2, 2),
        (0, 2, 1),
        (0, 2, 2),
    ]
    mean = 100 * np.mean([r["top1"] for r in report.rows if r["drop_rate"] == 0.75])
    assert f"| 75% | {mean:.1f} |" in path.with_suffix(".md").read_text()


def test_speed_and_memory_of_every_rate(tmp_path, monkeypatch):
    small(monkeypatch)
    # A process for each row would take longer than all other tests here.
    monkeypatch.setattr(model_steps, "peak_memory", lambda case: {"peak_bytes": 2, "step_bytes": 1})
    assert droptoken_sweep.main(["--quick", "--only", "timing", "--out", str(tmp_path), "--device", "cpu"]) == 0
    report = harness.load(next(tmp_path.glob("*/droptoken_sweep.json")))
    rows = {(r["mode"], r["drop_rate"]): r for r in report.rows if r["kind"] == "timing"}
    assert set(rows) == {(mode, rate) for mode in ("inference", "training") for rate in (0.0, 0.5)}
    half, whole = rows["inference", 0.5], rows["inference", 0.0]
    assert half["tokens"]["video"] == 33
    assert half["speedup"] == pytest.approx(whole["p50"] / half["p50"])
    assert half["ideal"] == pytest.approx(whole["gflops"] / half["gflops"])
    assert all(r["peak_bytes"] == 2 and len(r["seconds"]) == 2 for r in rows.values())


def test_flops_of_table_5():
    rows = {row["drop_rate"]: row for row in droptoken_sweep.flops_rows()}
    assert {rate: row["tokens"]["video"] for rate, row in rows.items()} == {0.75: 393, 0.5: 785, 0.25: 1177, 0.0: 1569}
    for row in rows.values():
        assert row["paper_count"] == pytest.approx(row["printed"], rel=0.005)
    assert rows[0.0]["true"] > rows[0.0]["paper_count"]


def test_a_model_of_ones_own_is_scored_on_any_manifest(cache, shared, tmp_path):
    corpus = next(cache.rglob("manifest.csv"))
    model = write_model(tmp_path / "run", corpus)
    scores = frozen_model.manifest_scores(model, str(corpus), model.parent / "features.npz", "cpu")
    assert scores["clips"] == 24
    assert set(scores["probe"]) == {"video", "audio"}
    assert scores["retrieval"]["text_to_video"]["candidates"] == 3
    built_in = frozen_model.corpus_scores(model.parent, 24, "cpu")
    assert built_in["retrieval"] == scores["retrieval"]
    assert built_in["probe"]["shape"] == scores["probe"]  # the label of the corpus is the shape
    assert built_in["probe"]["motion"]["video"]["classes"] == 8
    sounds = sorted((shared / "data" / "esc10" / "audio").glob("*.flac"))[:6]
    first = read_manifest(corpus)[0]
    rows = [
        replace(first, index=i, path=path, name=path.name, captions=(), label="ab"[i % 2], split="xyz"[i // 2])
        for i, path in enumerate(sounds)
    ]
    write_manifest(tmp_path / "esc50.csv", rows)
    scores = frozen_model.manifest_scores(model, str(tmp_path / "esc50.csv"), tmp_path / "sounds.npz", "cpu")
    assert set(scores["probe"]) == {"audio"}
    assert len(scores["probe"]["audio"]["splits"]) == 3
    write_manifest(tmp_path / "bare.csv", [replace(row, label=None) for row in rows])
    with pytest.raises(harness.ReportError, match="neither captions"):
        frozen_model.manifest_scores(model, str(tmp_path / "bare.csv"), tmp_path / "bare.npz", "cpu")


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    calls = []

    def trained(argv):
        calls.append(argv)
        (tmp_path / "run" / "config.json").touch()
        return 130 if len(calls) == 1 else 0

    monkeypatch.setattr(frozen_model.train, "main", trained)
    settings = {"steps": 5, "clips": 24, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        frozen_model.pretrain(tmp_path / "run", 0.25, 7, **settings, resume=False)
    frozen_model.pretrain(tmp_path / "run", 0.25, 7, **settings, resume=True)
    frozen_model.pretrain(tmp_path / "run", 0.25, 7, **settings, resume=False)
    assert ["--resume" in argv for argv in calls] == [False, True, False]
    assert all(argv[argv.index("--drop-rate") + 1] == "0.25" for argv in calls)


def test_differences_are_taken_fold_by_fold():
    one = droptoken_page.Series(
        "x", {0.0: {"a": 50.0, "b": 70.0}, 0.5: {"b": 67.0, "a": 49.0, "c": 1.0}}, {0.0: 2, 0.5: 1}
    )
    assert sorted(one.loss(0.5)) == [-3.0, -1.0]
    assert droptoken_page.lost(one, 0.5) == "-2.0 ± 1.0"
    assert droptoken_page.paper_column("HMDB51-1, video probe") == "HMDB51"
    assert droptoken_page.paper_column("msr_vtt, text-to-video R@10") == "MSR-VTT"
    assert droptoken_page.paper_column("mine, video probe") is None


@pytest.mark.parametrize("argv", [["--only", "esc10"], ["--data", "x.csv"], ["--drop-rates", "0.5"], ["--init", "x"]])
def test_wrong_usage_ends_with_2(argv, tmp_path):
    with pytest.raises(SystemExit) as stop:
        droptoken_sweep.main([*argv, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert not list(tmp_path.iterdir())
