"""The training command as its users meet it: runs, resumes, wrong input; what outlives kills is in test_promises.py."""

import json
import shutil

import pytest
import torch
from helpers.small_run import SMALL, losses, run, saved_step

from vatt import train
from vatt.checkpoints import model_folder
from vatt.data.loader import make_loader
from vatt.data.synthetic import FORMAT
from vatt.errors import DataError
from vatt.evaluate import main as evaluate
from vatt.evaluation.metrics import ranks, retrieval_scores
from vatt.training import loop
from vatt.training.metrics_log import read_metrics
from vatt.training.status import format_status, status

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="session")
def whole(tmp_path_factory, cache):
    """An uninterrupted run of 10 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("--out", out, "--steps", 10, "--fused") == 0
    return out


def test_a_run_leaves_all_it_promises(whole):
    assert {p.name for p in whole.iterdir()} == {
        "config.json",
        "vocabulary.txt",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "loss.png",
        "result.json",
        "content.json",
        "decoding.json",
    }
    records = read_metrics(whole / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 11))
    assert all(r["operations"] == "portable" for r in records)
    result = json.loads((whole / "result.json").read_text())
    assert result["retrieval"]["text_to_video"]["candidates"] >= 1
    assert set(result["environment"]) >= {"argv", "commit", "dirty", "versions", "device", "cores"}
    assert "portable" in result["environment"]["operations"]


def test_a_second_run_is_the_same_to_the_bit(whole, tmp_path):
    assert run("--out", tmp_path / "run", "--steps", 10, "--fused", "--set", "data.workers=2") == 0
    assert losses(tmp_path / "run") == losses(whole)


def test_another_seed_is_another_run(whole, tmp_path):
    assert run("--out", tmp_path / "run", "--steps", 10, "--fused", "--seed", 2) == 0
    assert losses(tmp_path / "run") != losses(whole)


def test_out_folder_of_another_run_is_refused(whole, capsys):
    assert run("--out", whole, "--steps", 3) == 2
    assert "--resume" in capsys.readouterr().err


def test_resume_without_a_run_is_refused(tmp_path, capsys):
    assert run("--out", tmp_path / "none", "--resume") == 1
    assert "holds no run" in capsys.readouterr().err


def test_resume_cannot_change_what_the_weights_are(whole, tmp_path, capsys):
    assert run("--out", whole, "--resume", "--set", "model.video_encoder.layers=2") == 2
    assert "model.video_encoder.layers: 1 -> 2" in capsys.readouterr().err
    assert run("--out", whole, "--resume", "--steps", 4) == 2
    assert "step 10 already" in capsys.readouterr().err


def test_resume_with_other_words_is_refused(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with open(out / "vocabulary.txt", "a") as file:
        file.write("zebra\n")
    assert run("--out", out, "--resume") == 1
    assert "vocabulary.txt: the words changed" in capsys.readouterr().err


def test_a_damaged_config_is_read_back_from_the_checkpoint(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "config.json").write_text("{")
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert "using the settings in" in capsys.readouterr().out
    assert losses(out) == losses(whole)


def test_killed_before_the_corpus_is_there(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    config = train.resolve_config(train.parse_arguments([*SMALL, "--steps", "1"]))
    model_folder.write_config(out, config, {"corpus_format": FORMAT})
    assert run("--out", out, "--resume") == 0
    assert len(losses(out)) == 1


def test_stopped_for_bad_clips_mended_and_resumed(tmp_path, cache, capsys):
    clips = sorted(cache.rglob("*.mp4"))[:12]
    folder = tmp_path / "clips"
    folder.mkdir()
    for i, clip in enumerate(clips):
        (folder / f"{i:02d}.mp4").write_bytes(b"" if i % 2 else clip.read_bytes())
    arguments = ("--data", folder, "--out", tmp_path / "run", "--steps", 4, "--set", "data.max_bad_share=0.2")
    assert run(*arguments) == 1
    assert "max_bad_share" in capsys.readouterr().err
    for i, clip in enumerate(clips):
        (folder / f"{i:02d}.mp4").write_bytes(clip.read_bytes())
    assert run("--out", tmp_path / "run", "--resume") == 0
    assert len(losses(tmp_path / "run")) == 4


def test_resume_with_another_manifest_is_refused(whole, tmp_path, capsys, cache):
    other = tmp_path / "other.csv"
    clip = next(cache.rglob("*.mp4"))
    other.write_text(f"path,caption\n{clip},one\n{clip},two\n{clip},three\n{clip},four\n")
    assert run("--out", whole, "--resume", "--data", other) == 1
    assert "changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optim.rat=1"], "did you mean 'optim.rate'"),
        (["--preset", "tinny"], "did you mean 'tiny'"),
        (["--drop-rate", "1.0"], "model.drop.rate"),
        (["--batch-size", "1"], "data.batch_size"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--dtype", "float8"], "float8"),
        (["--data", "missing.csv"], "missing.csv"),
        (["--resume"], "--out"),
        (["--set", "eval_windows=0"], "eval_windows must be at least 1, got 0"),
        (["--set", "data.workers=-1"], "data.workers must be at least 0"),
        (["--set", "model.video.patch=32,16,16"], "model.video.patch must be at most 16 frames"),
        (["--set", "model.video.patch=0,16,16"], "model.video.patch"),
        (["--set", "optim.rate=nan"], "optim.rate"),
        (["--set", "seed=-1"], "seed"),
        (["--set", "loss.temperature=0"], "loss.temperature"),
        (["--set", "data.augment.scale_range=1.2,0.8"], "data.augment.scale_range"),
        (["--set", "model.drop.sampling=foo"], "batch or sample"),
        (["--drop-rate", "0.99"], "low enough to keep one of the 64 video tokens"),
        (["--device", "meta"], "meta"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_print_config_prints_what_would_run(capsys):
    assert train.main(["--preset", "mbs", "--drop-rate", "0.75", "--set", "loss.form=paper", "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"]["drop"]["rate"], printed["loss"]["form"]) == (0.75, "paper")


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--preset",
        "--data",
        "--out",
        "--fused",
        "--steps",
        "--batch-size",
        "--seed",
        "--device",
        "--dtype",
        "--resume",
        "--drop-rate",
        "--set",
        "--print-config",
    ):
        lines = [line for line in text.splitlines() if line.strip().startswith(flag)]
        assert lines, flag
    assert "exit codes" in text


def test_manifest_without_test_rows_says_so_and_writes_no_retrieval(tmp_path, cache, capsys):
    clips = sorted(cache.rglob("*.mp4"))[:6]
    (tmp_path / "m.csv").write_text("path,caption\n" + "".join(f"{c},a shape {i}\n" for i, c in enumerate(clips)))
    out = tmp_path / "run"
    assert run("--data", tmp_path / "m.csv", "--out", out, "--steps", 2) == 0
    assert "no retrieval" in capsys.readouterr().out
    assert "retrieval" not in json.loads((out / "result.json").read_text())


def test_evaluate_repeats_the_scores_of_the_run(whole, tmp_path, capsys):
    assert evaluate(["--run", str(whole), "--out", str(tmp_path / "scores.json")]) == 0
    wanted = json.loads((whole / "result.json").read_text())["retrieval"]
    assert json.loads((tmp_path / "scores.json").read_text()) == wanted


def test_evaluate_takes_all_rows_of_a_folder_without_splits(whole, tmp_path, cache, capsys):
    for i, clip in enumerate(sorted(cache.rglob("*.mp4"))[:3]):
        (tmp_path / f"{i}.mp4").write_bytes(clip.read_bytes())
        (tmp_path / f"{i}.txt").write_text(f"a red shape {i}\n!!!\n")  # the second caption has no word
    assert evaluate(["--run", str(whole), "--data", str(tmp_path), "--out", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())["text_to_video"]
    assert (scores["candidates"], scores["queries"]) == (3, 3)


@pytest.mark.parametrize("arguments", [["--windows", "-1"], ["--split", "nowhere"], ["--out", "/nowhere/s.json"]])
def test_evaluate_wrong_usage_exits_2(whole, arguments, capsys):
    assert evaluate(["--run", str(whole), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_evaluate_needs_a_finished_run(tmp_path, capsys):
    assert evaluate(["--run", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_ranks_of_nan_are_the_worst():
    assert ranks(torch.full((2, 5), float("nan")), torch.tensor([0, 1])).tolist() == [5, 5]


def test_ranks_share_the_places_of_a_tie():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.0, 0.3, 0.9]])
    assert ranks(similarity, torch.tensor([0, 1, 1])).tolist() == [1, 2, 2]
    scores = retrieval_scores(similarity, torch.tensor([0, 1, 1]))
    assert (scores["R@1"], scores["R@5"], scores["median_rank"]) == (pytest.approx(4 / 9), 1.0, 2.0)


def test_data_that_ends_in_an_error_loses_no_step(tmp_path, cache, monkeypatch):
    real = make_loader

    def breaking(dataset, start, count, *rest):
        for index, batch in enumerate(real(dataset, start, count, *rest)):
            if index == 2:
                raise DataError("the disk went away")
            yield batch

    monkeypatch.setattr(loop, "make_loader", breaking)
    out = tmp_path / "run"
    assert run("--out", out, "--steps", 5, "--set", "save_every=100") == 1
    assert saved_step(out) == 2


def test_tensorboard_writes_events_or_says_what_to_install(tmp_path, capsys):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert run("--out", tmp_path / "run", "--steps", 1, "--set", "tensorboard=true") == 2
        assert ".[tensorboard]" in capsys.readouterr().err
    else:
        assert run("--out", tmp_path / "run", "--steps", 1, "--set", "tensorboard=true") == 0
        assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_held_out_clips_that_are_missing_are_told(tmp_path, cache, capsys):
    clips = sorted(cache.rglob("*.mp4"))[:6]
    held_out = [str(path) for path in clips[4:]] + [f"gone{i}.mp4" for i in range(2)]
    lines = [f"{path},a,train" for path in clips[:4]] + [f"{path},b,test" for path in held_out]
    (tmp_path / "m.csv").write_text("\n".join(["path,caption,split", *lines]) + "\n")
    out = tmp_path / "run"
    assert run("--data", tmp_path / "m.csv", "--out", out, "--steps", 1) == 1
    said = capsys.readouterr()
    assert "2 of 4 held-out clips could not be used" in said.out.splitlines()[-1]
    assert "no retrieval scores: 2 of 4 held-out clips could not be used" in said.err
    result = json.loads((out / "result.json").read_text())
    assert (result["held_out_bad_clips"], "retrieval" in result) == (2, False)
    assert "held out   2 of 4 held-out clips could not be used" in format_status(status(out))
    assert run("--out", out, "--resume", "--set", "data.max_bad_share=0.6") == 0
    assert "retrieval" in json.loads((out / "result.json").read_text())
    assert "held out   2 of 4" in format_status(status(out))
    for i in range(2):
        (tmp_path / f"gone{i}.mp4").write_bytes(clips[0].read_bytes())
    assert run("--out", out, "--resume") == 0
    assert "held out" not in format_status(status(out))
