"""Our model against recorded arrays of the official one, with both kinds of operations."""

import shutil

import numpy as np
import pytest
import torch
from helpers.other_sizes import make_folder

from vatt.official.__main__ import main
from vatt.official.verify.checks import CHECKS, format_row, verify_file, verify_folder
from vatt.official.verify.recording import Fixtures, Recording, VerifyError
from vatt.ops import REFERENCE, choose


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "fixtures"


@pytest.fixture(scope="module", params=["reference", "fused"])
def fixtures(folder, request):
    return Fixtures(folder, choose(request.param == "fused", "cpu"))


def failures(rows):
    return [format_row(row) for row in rows if not row.passed]


@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_official_release(fixtures, name):
    rows = verify_file(name, fixtures)
    assert rows
    assert failures(rows) == []


def test_fused_probabilities_are_marked(fixtures):
    notes = {row.note for row in verify_file("video_vit", fixtures) if "attn_probs" in row.array}
    assert notes == ({"by reference from the fused q and k"} if fixtures.fused else {""})


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_sizes_come_from_the_folder(tmp_path, folder, impl):
    other = make_folder(tmp_path / "other", folder)
    rows = [row for rows in verify_folder(other, choose(impl == "fused", "cpu")) for row in rows]
    assert len(rows) > 600
    assert failures(rows) == []


@pytest.mark.parametrize(
    ("file", "array", "change"),
    [
        ("video_vit", "hidden_2", 1e-3),
        ("text_t5", "mask_with_agg", 1),
        ("spline", "src_14_to_20.expanded_float64", 1e-3),
        ("tx_fac_full", "evalgrad.model/layer_with_weights-0/_base_layer/txt_backbone/agg_embedding", 1e-3),
        ("fac_head", "train.after.va_to_vat.bn.moving_variance", 1e-3),
        ("relative_buckets", "bucket_n32_d64_bi", 1),
    ],
)
def test_a_difference_fails_its_row_only(folder, file, array, change):
    with np.load(folder / f"{file}.npz") as npz:
        arrays = {name: npz[name].copy() for name in npz.files}
    arrays[array].flat[-1] += change
    recording = Recording(file, arrays, Fixtures(folder, REFERENCE))
    CHECKS[file](recording)
    assert [row.array for row in recording.finish() if not row.passed] == [array]


def test_tolerance_notices_a_wrong_epsilon(folder):
    fixtures = Fixtures(folder, REFERENCE)
    model = fixtures.load("ckpt_tx_fac").module
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    assert failures(verify_file("video_vit", fixtures))


def test_nan_and_shapes_fail(folder):
    recording = Recording("x", {"a": np.zeros(2), "b": np.zeros(2)}, Fixtures(folder, REFERENCE))
    recording.check("a", torch.tensor([0.0, float("nan")]))
    recording.check("b", torch.zeros(2, 1))
    recording.check("c", torch.zeros(2))
    assert [row.passed for row in recording.finish()] == [False, False, False]


def test_nothing_recorded_is_passed_over(folder):
    recording = Recording("x", {"a": np.zeros(2), "new": np.zeros(2)}, Fixtures(folder, REFERENCE))
    recording.check("a", torch.zeros(2))
    assert [(row.array, row.passed) for row in recording.finish()] == [("a", True), ("new", False)]


def test_command_passes_and_prints_a_row_an_array(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 3} of {len(lines) - 3} arrays passed"
    assert any("finetune_audio" in line and "single.loss" in line and "pass" in line for line in lines)


def test_command_fails_on_missing_unknown_and_damaged_files(folder, tmp_path, capsys):
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    (other / "metrics.npz").unlink()
    (other / "spline.npz").write_bytes((other / "spline.npz").read_bytes()[:1000])
    np.savez(other / "new_recording.npz", a=np.zeros(1))
    assert main(["verify", str(other)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert "metrics.npz is missing" in "\n".join(failed)
    assert "spline.npz cannot be read" in "\n".join(failed)
    assert "new_recording" in "\n".join(failed)
    assert failed[-1].endswith("3 FAILED")


def test_a_folder_without_sizes_is_refused(tmp_path, capsys):
    with pytest.raises(VerifyError, match=r"config\.json"):
        Fixtures(tmp_path, REFERENCE)
    assert main(["verify", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
