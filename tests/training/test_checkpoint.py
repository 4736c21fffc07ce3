"""Checkpoints: what is saved loads, damage is noticed, a kill leaves a whole one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.processes import begin

from vatt.checkpoints import training_checkpoint


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((64, 64), value), "b": torch.arange(3)}


def test_round_trip_is_bit_equal(tmp_path):
    model = {"a": torch.randn(5, 3), "n": torch.tensor(7)}
    training_checkpoint.save(tmp_path, 12, model, {"optimizer": {"m": torch.randn(2)}, "manifest": "x"}, keep=2)
    found = training_checkpoint.load_latest(tmp_path)
    assert found.step == 12
    assert all(torch.equal(found.model[k], v) for k, v in model.items())
    assert found.state["manifest"] == "x"


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        training_checkpoint.save(tmp_path, step, weights(step), {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_the_previous_one_is_used(tmp_path, file, damage, caplog):
    training_checkpoint.save(tmp_path, 1, weights(1), {}, keep=3)
    path = training_checkpoint.save(tmp_path, 2, weights(2), {}, keep=3) / file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    found = training_checkpoint.load_latest(tmp_path)
    said = caplog.messages
    assert found.step == 1
    assert torch.equal(found.model["a"], weights(1)["a"])
    assert len(said) == 1
    assert "step-00000002" in said[0]  # a flipped digit of a checksum names the file it is the sum of
    assert "step-00000001" in said[0]


def test_no_whole_checkpoint_is_an_error_that_names_all(tmp_path):
    for step in (1, 2):
        (training_checkpoint.save(tmp_path, step, weights(step), {}, keep=3) / "state.pt").write_bytes(b"")
    with pytest.raises(training_checkpoint.DamagedCheckpoint, match=r"step-00000002.*step-00000001"):
        training_checkpoint.load_latest(tmp_path)


def test_saving_a_whole_step_again_keeps_it(tmp_path):
    path = training_checkpoint.save(tmp_path, 5, weights(1), {}, keep=1)
    before = (path / "model.safetensors").stat().st_ino
    training_checkpoint.save(tmp_path, 5, weights(1), {}, keep=1)
    assert (path / "model.safetensors").stat().st_ino == before


def test_a_full_disk_is_an_os_error_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    training_checkpoint.save(tmp_path, 1, weights(1), {}, keep=1)

    def full(*_):
        raise training_checkpoint.SafetensorError("No space left on device")

    monkeypatch.setattr(training_checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        training_checkpoint.save(tmp_path, 2, weights(2), {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_saving_after_a_resume_from_an_older_one_drops_the_damaged_newer(tmp_path):
    training_checkpoint.save(tmp_path, 1, weights(1), {}, keep=1)
    (tmp_path / "step-00000009").mkdir()
    training_checkpoint.save(tmp_path, 2, weights(2), {}, keep=1)
    assert training_checkpoint.load_latest(tmp_path).step == 2


def test_state_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    training_checkpoint.save(tmp_path, 1, weights(1), {}, keep=1)
    path = tmp_path / "step-00000001"
    torch.save({"step": 1, "x": Evil()}, path / "state.pt")
    sums = f'{{"model.safetensors": "{training_checkpoint._sha256(path / "model.safetensors")}", '
    (path / "checksums.json").write_text(sums + f'"state.pt": "{training_checkpoint._sha256(path / "state.pt")}"}}')
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        training_checkpoint.load(path)


SAVER = """
import sys, torch, pathlib
from vatt.checkpoints import training_checkpoint
torch.set_num_threads(1)
for step in range(1, 10_000):
    training_checkpoint.save(pathlib.Path(sys.argv[1]), step, {"a": torch.full((400, 400), float(step))}, {}, keep=2)
    print(step, flush=True)
"""


def test_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    for delay in (0.0, 0.003, 0.007):
        process = begin(command, stdout=subprocess.PIPE)
        while int(process.stdout.readline()) < 3:
            pass
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        last = process.communicate()[0].split()
        found = training_checkpoint.load_latest(tmp_path)
        assert torch.equal(found.model["a"], torch.full((400, 400), float(found.step)))
        assert found.step >= (int(last[-1]) if last else 3)
