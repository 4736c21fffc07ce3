"""The model card: all the records say and nothing else, and no card of somebody else's is lost."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.small_model import write_model

import vatt
from vatt import card, finetune, train
from vatt.checkpoints.fingerprints import weights_fingerprint
from vatt.config.finetuning import FinetuneConfig
from vatt.config.serialization import from_dict
from vatt.model.vatt import count_parameters
from vatt.runtime import provenance

FEW = ("--steps=3", "--batch-size=4", "--device=cpu", "--set=data.workers=0", "--set=eval_windows=1")
NEVER_RECORDED = {"licence of the data"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> dict[str, Path]:
    """A run of pre-training and one of fine-tuning, three steps each."""
    folder = tmp_path_factory.mktemp("runs")
    assert train.main(["--data", str(corpus), "--out", str(folder / "pretrained"), *FEW]) == 0
    arguments = ["--task=audio", "--loss=softmax", "--init", str(folder / "pretrained"), "--data", str(corpus)]
    assert finetune.main([*arguments, "--out", str(folder / "finetuned"), *FEW]) == 0
    return {name: folder / name for name in ("pretrained", "finetuned")}


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the run of pre-training, to be changed."""
    shutil.copytree(runs["pretrained"], tmp_path / "run", ignore=shutil.ignore_patterns("README.md", "checkpoints"))
    return tmp_path / "run"


def write(folder: Path, *arguments: str) -> str:
    assert card.main([str(folder), *arguments]) == 0
    return (folder / "README.md").read_text()


def rows(text: str) -> dict[str, str]:
    """What the tables of two columns say."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["pretrained", "finetuned"])
def test_a_card_says_all_that_was_recorded(runs, name, corpus):
    folder = runs[name]
    text = write(folder, "--license=cc-by-4.0")
    told, result = rows(text), json.loads((folder / "result.json").read_text())
    assert {what for what, value in told.items() if "unknown" in value} <= NEVER_RECORDED
    assert told["steps"] == "3 of 3"
    assert told["corpus"] == "manifest.csv"
    assert told["parameters"] == f"{count_parameters(vatt.load(folder)):,}"
    assert told["final loss"] == f"{result['final_loss']:.4g}"
    scores = result["retrieval"]["text_to_video"] if name == "pretrained" else result["test"]["scores"]
    assert all(f" {value:.4g} |" in text for value in scores.values())
    for line in (folder / "metrics.jsonl").read_text().splitlines():  # fewer steps than spans: one a line
        step = json.loads(line)
        assert f"| {step['step']} to {step['step']} | {step['loss']:.4g} |" in text
    assert "![Training curves](loss.png)" in text
    assert result["environment"]["commit"] is None or result["environment"]["commit"] in text
    assert str(corpus.parent) not in text
    assert str(folder.parent) not in text
    if name == "finetuned":
        assert "classifies sound, fine-tuned from pretrained" in text
        assert told["class names"] == "circle, cross, ring, square, triangle"


def test_the_hub_can_read_it(runs):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(write(runs["finetuned"], "--license=apache-2.0")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "vatt", "audio-classification")
    assert hub.ModelCard(write(runs["pretrained"])).data.license == "unknown"


def test_a_model_for_the_hub_names_no_folder_of_this_machine(run, corpus, tmp_path):
    pytest.importorskip("huggingface_hub")
    model = vatt.VATT.from_pretrained(run)
    assert model.settings.data.source == str(corpus)
    model.save_pretrained(tmp_path / "saved")
    assert vatt.load_config(tmp_path / "saved").data.source == corpus.name
    assert str(corpus.parent) not in (tmp_path / "saved/config.json").read_text()


def test_a_readme_of_others_is_kept(run, capsys):
    readme = run / "README.md"
    first = write(run)
    assert write(run, "--name=Other") != first  # its own it replaces
    readme.write_text(edited := readme.read_text().replace("# Other", "# My model"))
    for theirs in (edited, "# By hand\n", ""):
        readme.write_text(theirs)
        assert card.main([str(run)]) == 2
        assert "--force" in capsys.readouterr().err
        assert readme.read_text() == theirs
    assert write(run, "--force") == first


def test_an_unfinished_run(run):
    """Killed after two of three steps, in the middle of a line."""
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    text = write(run)
    assert "not finished:** 2 of 3 steps" in text
    assert "## Scores\n\nunknown" in text
    assert rows(text)["parameters"] == "unknown"
    (run / "metrics.jsonl").unlink()
    assert "not finished:** unknown of 3 steps" in write(run)


def test_a_finished_run_that_goes_on(run):
    config = json.loads((run / "config.json").read_text())
    config["config"]["steps"] = 9
    (run / "config.json").write_text(json.dumps(config))
    assert "not finished:** 3 of 9 steps; weights and scores are those after 3." in write(run)


def test_a_model_folder_holds_the_settings_that_made_it(runs, tmp_path):
    """Also without its run, and so does its card."""
    run = json.loads((runs["finetuned"] / "config.json").read_text())["finetune"]
    record = json.loads((runs["finetuned"] / "model/config.json").read_text())
    assert "config" not in record  # settings of pre-training that never were
    assert record["finetune"] == run
    assert (run["optim"]["momentum"], run["loss"]) == (0.9, "softmax")
    assert vatt.load_config(runs["finetuned"]) == from_dict(FinetuneConfig, run)
    shutil.copytree(runs["finetuned"] / "model", tmp_path / "alone")
    for folder in (runs["finetuned"], tmp_path / "alone"):
        told = rows(write(folder))
        assert told["optimizer"] == "SGD with momentum 0.9"
        assert told["loss"] == "softmax cross-entropy, mixup 5"
        assert told["learning rate"] == "0.005"
    told = rows(write(runs["pretrained"]))
    assert (told["optimizer"], told["loss"]) == ("Adam with betas 0.9 and 0.999", "contrastive, asymmetric")


def test_a_fine_tuned_model_of_20a74a7(runs, tmp_path):
    """Its folder holds sizes and data as settings of pre-training, and the rest of those is nothing to tell."""
    shutil.copytree(runs["finetuned"] / "model", tmp_path / "old")
    path = tmp_path / "old/config.json"
    record = json.loads(path.read_text())
    settings = record.pop("finetune")
    shared = {name: settings[name] for name in ("model", "data", "fused", "seed", "steps", "eval_windows")}
    path.write_text(json.dumps({"config": shared | {"preset": "audio"}, **record}))
    assert vatt.load_config(tmp_path / "old").model == vatt.load_config(runs["finetuned"]).model
    ours, theirs = vatt.load(runs["finetuned"]), vatt.load(tmp_path / "old")
    assert weights_fingerprint(ours) == weights_fingerprint(theirs)
    told = rows(write(tmp_path / "old"))
    assert told["all else"] == "unknown"
    assert not {"optimizer", "loss", "learning rate"} & told.keys()


def test_of_a_model_alone_little_is_known(tmp_path, corpus):
    """Its settings hold defaults for what nobody recorded; a card must not repeat them as facts."""
    told = rows(text := write(write_model(tmp_path / "small", corpus)))
    assert told["video encoder"] == "1 layers of width 32"
    assert {"all else", "corpus", "training split"} <= {what for what, value in told.items() if value == "unknown"}
    assert "learning rate" not in told
    assert "## Curves\n\nunknown" in text


def test_damaged_records_are_named(run, tmp_path, capsys):
    lines = (run / "metrics.jsonl").read_text()
    for name, content in (("metrics.jsonl", "{torn\n" + lines), ("result.json", "[]"), ("config.json", "{")):
        before = (run / name).read_text()
        (run / name).write_text(content)
        assert card.main([str(run)]) == 1
        assert name in capsys.readouterr().err
        (run / name).write_text(before)
    (tmp_path / "empty").mkdir()
    assert card.main([str(tmp_path / "empty")]) == 1
    assert card.main([str(tmp_path / "nowhere")]) == 2
    assert not (run / "README.md").exists()


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("/home/alice/clips.csv", "clips.csv"),
        ("--data=/home/alice/my clips/val.csv", "--data=val.csv"),
        ("--set=data.source=~/clips", "--set=data.source=clips"),
        ("/home/alice/runs/mbs/model", "mbs"),
        ("runs/mbs", "runs/mbs"),
        ("optim.rate=0.1", "optim.rate=0.1"),
        ("https://alice:secret@host/a/{00..09}.tar?key=abc=", "https://host/a/{00..09}.tar"),
        ("--data=https://host/a.tar?key=abc", "--data=https://host/a.tar"),
    ],
)
def test_a_card_shows_no_places_and_keys(said, public):
    assert provenance.public(said) == public
