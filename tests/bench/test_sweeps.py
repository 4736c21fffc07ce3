"""The sweeps of Tables 6 and 7: what they count, what they time, and that nothing measured is lost."""

import csv
import json
from dataclasses import replace

from harness import report as harness
from harness import timing

import model_sizes
import pytest
import resolution_sweep
import torch
from workloads import model_steps
from workloads.model_steps import StepCase

from vatt.config.model import DropConfig
from vatt.config.presets import preset

SWEEP = [
    "--preset",
    "tiny",
    "--layers",
    "1",
    "--clips",
    "8x64",
    "8x96",
    "--drop-rates",
    "0",
    "0.5",
    "--repeats",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Files that someone edits while the tests run do not make it another program; one step is one process, here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "_sources", lambda: "one")
        patch.setattr(model_steps, "peak_memory", lambda case: {"peak_bytes": 2 << 20, "step_bytes": 1 << 20})
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished report of resolution_sweep for a very small model: the path of its JSON."""
    out = tmp_path_factory.mktemp("reports")
    assert resolution_sweep.main([*SWEEP, "--out", str(out)]) == 0
    return next(out.glob("*/resolution_sweep.json"))


def case(**changes) -> StepCase:
    model = replace(preset("tiny").model, drop=DropConfig(0.5))
    return StepCase(**{"model": model, "training": False, "batch": 2} | changes)


def test_rows_time_training_with_fewer_tokens_and_evaluation_with_all(swept):
    report = harness.load(swept)
    assert report.finished
    assert report.gate["green"] is True
    rows = {(r["clip"], r["training"], r["drop_rate"]): r for r in report.rows if r["kind"] == "measured"}
    assert set(rows) == {(c, t, d) for c in ("8x64", "8x96") for t in (True, False) for d in (0.0, 0.5)}
    assert {key: r["tokens"] for key, r in rows.items() if key[0] == "8x96"} == {
        ("8x96", True, 0.0): 73,
        ("8x96", True, 0.5): 37,
        ("8x96", False, 0.0): 73,
        ("8x96", False, 0.5): 37,
    }
    for (clip, training, rate), row in rows.items():
        assert row["drop_in_eval"] == (not training and rate > 0)
        assert len(row["seconds"]) == 2
        assert row["clips_per_second"] == timing.quantiles([1 / seconds for seconds in row["seconds"]])
        assert row["speedup"] == pytest.approx(rows[clip, training, 0.0]["p50"] / row["p50"])
        none = rows[clip, training, 0.0]["gflops"]
        assert row["flop_ratio"] == pytest.approx(none / row["gflops"])  # fused: nothing dropped is computed
    assert 2 < rows["8x64", True, 0.0]["gflops"] / rows["8x64", False, 0.0]["gflops"] < 3


def test_the_page_sets_the_paper_beside_both_accountings_and_marks_what_is_not_ours(swept):
    page = swept.with_suffix(".md").read_text()
    assert "| 32x320x320 | 75% | 801 | 279.8 | 279.801 | +0.0005% | 293.563 | 0.953 | 79.3 % |" in page
    assert "| 64x224x224 | 50% | 1569 | – |" in page
    assert "leave out Q K^T" in page
    assert "the paper's top-1" in page
    assert "tiny" in page
    assert "on cpu" in page
    with open(swept.with_suffix(".csv")) as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(harness.load(swept).rows)
    assert float(lines[0]["clips_per_second.p50"]) > 0


def test_resume_measures_only_what_is_missing(swept, tmp_path):
    report = harness.load(swept)
    report.finished = False
    lost = report.rows[3]["seconds"].pop()
    del report.rows[1]["peak_bytes"]
    report.save(tmp_path / report.machine / swept.name)
    assert resolution_sweep.main([*SWEEP, "--out", str(tmp_path), "--resume"]) == 0
    again = harness.load(tmp_path / report.machine / swept.name)
    assert again.finished
    assert "peak_bytes" in again.rows[1]
    assert len(again.rows[3]["seconds"]) == 2
    assert again.rows[3]["seconds"][1] != lost
    kept = [row["seconds"] for i, row in enumerate(report.rows) if i != 3 and "seconds" in row]
    assert [row["seconds"] for i, row in enumerate(again.rows) if i != 3 and "seconds" in row] == kept


def test_red_numerics_are_not_timed(tmp_path, monkeypatch, capsys):
    honest = model_steps._tensors

    def wrong(case, *, exact=False):
        found = honest(case, exact=exact)
        return {name: x * (1 + 1e-4 * case.fused) for name, x in found.items()}

    monkeypatch.setattr(model_steps, "_tensors", wrong)
    assert resolution_sweep.main([*SWEEP, "--out", str(tmp_path)]) == 1
    assert "disagree" in capsys.readouterr().err
    report = json.loads(next(tmp_path.glob("*/resolution_sweep.json")).read_text())
    assert report["gate"]["green"] is False
    assert not any(row.get("seconds") for row in report["rows"])
    assert not report["finished"]


def test_a_dropped_evaluation_drops_and_does_nothing_else_of_training():
    encoder = replace(preset("tiny").model.video_encoder, dropout=0.5)
    model = replace(preset("tiny").model, video_encoder=encoder, drop=DropConfig(0.5))
    frames = model_steps.inputs(case())["video"]
    for dropping, tokens in ((False, 65), (True, 33)):
        backbone = model_steps.backbone_of(model_steps.build(case(model=model, drop_in_eval=dropping)))
        with torch.inference_mode():
            once, twice = (backbone.features("video", frames, seed=4) for _ in range(2))
        assert once.shape[1] == tokens == case(drop_in_eval=dropping).tokens["video"]
        assert torch.equal(once, twice)  # dropout would draw anew


@pytest.mark.parametrize("kind", ["tiny", "tiny_ma"])
def test_the_gate_covers_all_modalities_and_the_loss_and_notices_a_wrong_gradient(kind, monkeypatch):
    whole = case(model=replace(preset(kind).model, drop=DropConfig(0.5)), training=True, whole=True)
    check = model_steps.numerics(whole)
    assert check["green"]
    assert check["tensors"] > 60
    honest = model_steps.contrast

    def scaled(embeddings, ops):
        return honest(embeddings, ops) * (1 + 1e-5 * (ops.impl == "portable"))

    monkeypatch.setattr(model_steps, "contrast", scaled)
    check = model_steps.numerics(whole)
    assert not check["green"]
    assert check["tensor"].endswith("of the loss")


def test_steps_of_a_whole_model_share_weights_and_leave_gradients():
    trained = case(training=True, whole=True)
    model = model_steps.build(trained)
    shared = model.state_dict(keep_vars=True)
    other = model_steps.build(case(whole=True), shared)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    model_steps.make_step(trained, shared)()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="batch of at least 2"):
        case(training=True, whole=True, batch=1)


def test_parameters_are_those_of_the_paper_and_of_the_official_models(tmp_path):
    assert model_sizes.main(["--out", str(tmp_path)]) == 0
    path = next(tmp_path.glob("*/model_sizes.json"))
    report = harness.load(path)
    assert all(row["parameters"] == row["official"] for row in report.rows if "official" in row)
    ours = {row["model"]: f"{row['parameters'] / 1e6:.1f}" for row in report.rows if "paper" in row}
    assert ours == {"Small": "20.8", "Base": "87.9", "Medium": "155.0", "Large": "306.1"}
    assert "Small differs: 20.8 M" in path.with_suffix(".md").read_text()


def test_impossible_flags_are_refused(capsys):
    for flags in (["--clips", "32"], ["--drop-rates", "0.5"], ["--drop-rates", "0", "1"], ["--repeats", "0"]):
        with pytest.raises(SystemExit, match="2"):
            resolution_sweep.main(flags)
    assert resolution_sweep.main(["--device", "cuda:99", "--quick"]) == 2
    assert "cuda:99" in capsys.readouterr().err
