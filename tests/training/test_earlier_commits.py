"""What an earlier commit wrote loads and goes on: tests/data_20a74a7 says how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import vatt
from vatt import train
from vatt.checkpoints import training_checkpoint
from vatt.checkpoints.fingerprints import weights_fingerprint
from vatt.data import synthetic
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
    assert len(vatt.load_tokenizer(FOLDER / "run").words) > 50


def test_a_run_goes_on(tmp_path: Path, cache: Path) -> None:
    """With the losses it had there; the tolerance is for other machines and versions of torch."""
    run = tmp_path / "run"
    shutil.copytree(FOLDER / "run", run)
    shutil.rmtree(run / "model")
    assert synthetic.main(["--clips", "24", "--seed", "0", "--format", "1"]) == 0
    assert train.main(["--out", str(run), "--resume"]) == 0
    assert len(losses(run)) == 6
    assert losses(run) == pytest.approx(losses(FOLDER / "run"), rel=1e-4)
    assert (run / "model" / "model.safetensors").exists()


def test_features_load() -> None:
    features = read_features(FOLDER / "features.npz")
    assert features.arrays["video_to_text"].shape == (24, 8)
    assert features.arrays["text_embedding"].shape == (120, 8)
    assert features.metadata["weights_sha256"] == weights_fingerprint(vatt.load(FOLDER / "run"))
