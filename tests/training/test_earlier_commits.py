"""What an earlier commit wrote loads and goes on: tests/data_20a74a7 says how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.media import steady, write_clip

import vatt
from vatt import train
from vatt.checkpoints import training_checkpoint
from vatt.checkpoints.fingerprints import weights_fingerprint
from vatt.inference.features_file import read_features

FOLDER = Path(__file__).resolve().parents[1] / "data_20a74a7"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_and_a_model_load() -> None:
    found = training_checkpoint.load_latest(FOLDER / "run" / "checkpoints")
    assert found is not None
    assert found.step == 3
    model = vatt.load(FOLDER / "run")
    assert model.state_dict().keys() == found.model.keys()
    assert vatt.load_config(FOLDER / "run").seed == 3
    assert vatt.load_config(FOLDER / "run").dropout == 1
    assert len(vatt.load_tokenizer(FOLDER / "run").words) == 14


def write_clips(folder: Path) -> Path:
    """Clips without loss, no larger than they are decoded: neither encoders nor the scaler decide what is seen."""
    folder.mkdir()
    for i in range(8):
        noise = np.random.default_rng(i).integers(-8000, 8000, 16_000).astype(np.int16)
        name = folder / f"clip{i}.mkv"
        write_clip(name, steady(2.0, 10), noise, rate=8000, video_codec="ffv1", audio_codec="pcm_s16le", size=48)
        name.with_suffix(".txt").write_text(f"clip number {i} of eight\n")
    return folder


def test_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the losses it had there: to the bit on a CPU like that one, else to what rounding becomes in three steps."""
    run = tmp_path / "run"
    shutil.copytree(FOLDER / "run", run)
    shutil.rmtree(run / "model")
    assert train.main(["--out", str(run), "--resume", "--data", str(write_clips(tmp_path / "clips"))]) == 0
    assert losses(run) == pytest.approx(losses(FOLDER / "run"), rel=1e-4)
    assert (run / "model" / "model.safetensors").exists()
    said = capsys.readouterr().out
    assert "content not recorded" in said
    assert "decoded by an earlier version, 1" in said
    assert vatt.load_config(run).dropout == 1
    assert train.main(["--out", str(run), "--resume", "--set", "dropout=2"]) == 2
    assert "this would change dropout: 1 -> 2" in capsys.readouterr().err


def test_features_load() -> None:
    features = read_features(FOLDER / "features.npz")
    assert features.arrays["video_to_text"].shape == (8, 8)
    assert features.arrays["text_embedding"].shape == (8, 8)
    assert features.metadata["weights_sha256"] == weights_fingerprint(vatt.load(FOLDER / "run"))
