"""Pre-training that begins with a model: what is taken over, what is frozen, and what cannot be."""

import json
import shutil

import pytest
import torch
from helpers.small_model import small_config, write_model
from helpers.small_run import losses, saved_step

from vatt import train
from vatt.checkpoints.model_folder import load_config, write_model_folder
from vatt.checkpoints.training_checkpoint import load_latest
from vatt.config.pretraining import Config
from vatt.config.serialization import to_dict
from vatt.data.synthetic import build_corpus
from vatt.model.vatt import VATT, Classifier
from vatt.official.__main__ import main as official
from vatt.official.init_source import read_source
from vatt.training.initialization import WORD_TABLE, load_pretrained

pytestmark = pytest.mark.usefixtures("cache")
FEW = ("--batch-size=4", "--steps=4", "--device=cpu", "--set=data.workers=0", "--set=save_every=2", "--fused")


@pytest.fixture(scope="module")
def source(tmp_path_factory, cache):
    return write_model(tmp_path_factory.mktemp("source"), build_corpus(clips=24, progress=False))


def command(*arguments) -> int:
    return train.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def continued(tmp_path_factory, source, cache):
    """Four steps from `source`, two towers frozen, the third slowly, with another word list."""
    folder = tmp_path_factory.mktemp("continued")
    known = (source / "vocabulary.txt").read_text().split()
    (folder / "words.txt").write_text("\n".join(["unheardof", *reversed(known[2:])]))
    arguments = ("--init", source, "--freeze=text,audio", "--lr-scale=video=0.1", f"--out={folder / 'run'}")
    words = f"--set=data.vocabulary={folder / 'words.txt'}"
    assert command(*arguments, words, "--set=data.builtin_clips=24", "--set=eval_windows=1", *FEW) == 0
    return folder / "run"


def test_words_go_by_word(continued, source):
    before, after = read_source(source)[WORD_TABLE], read_source(continued)[WORD_TABLE]
    old, new = ((folder / "vocabulary.txt").read_text().split() for folder in (source, continued))
    assert new[:3] == ["<pad>", "<unk>", "unheardof"]
    for word in (new[3], new[-1]):
        assert torch.equal(after[new.index(word)], before[old.index(word)])
    said = (continued / "init.txt").read_text()
    assert f"words: {len(old)} of {len(new)} taken over, 1 start fresh" in said
    assert "fresh word: unheardof" in said


def test_frozen_towers_stay_and_have_no_moments(continued, source):
    before, after = read_source(source), read_source(continued)
    frozen = ("backbone.tokens.text.", "backbone.encoder.text.", "backbone.tokens.audio.", "backbone.encoder.audio.")
    still = [name for name in after if name.startswith(frozen) and name != WORD_TABLE]
    assert still
    assert all(torch.equal(before[name], after[name]) for name in still)
    assert not torch.equal(before["backbone.tokens.video.weight"], after["backbone.tokens.video.weight"])
    state = load_latest(continued / "checkpoints").state["optimizer"]
    model = VATT(load_config(continued).model)
    trained = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
    assert len(state["state"]) == len(trained)
    rates = {group["scale"]: group["lr"] for group in state["param_groups"]}
    assert rates[0.1] == pytest.approx(0.1 * rates[1.0])


def test_it_resumes_to_the_bit(continued, tmp_path):
    shutil.copytree(continued, tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    assert saved_step(tmp_path / "run") == 2
    assert command("--out", tmp_path / "run", "--resume") == 0
    assert losses(tmp_path / "run") == losses(continued)
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (continued / name).read_bytes()


def test_the_settings_of_the_source_are_kept_but_not_its_clips(source, capsys):
    assert command("--init", source, "--steps=7", "--print-config") == 0
    config = json.loads(capsys.readouterr().out)
    assert config["model"] == json.loads(json.dumps(to_dict(small_config().model)))
    assert (config["steps"], config["optim"]["rate"]) == (7, small_config().optim.rate)
    assert (config["data"]["source"], config["data"]["vocabulary"]) == ("", "")


def test_a_fine_tuned_backbone_gives_its_tower(tmp_path):
    sizes = small_config().model
    classifier = Classifier(sizes, "audio", 3)
    record = {"classifier": {"modality": "audio", "classes": 3}}
    write_model_folder(tmp_path / "model", classifier.state_dict(), Config(preset="x", model=sizes), record, None)
    model = VATT(sizes)
    report = load_pretrained(model, read_source(tmp_path), None, ["a"])
    assert torch.equal(model.backbone.tokens["audio"].weight, classifier.backbone.tokens["audio"].weight)
    assert "backbone.tokens.video.weight" in report.fresh
    assert report.words == ["words: none taken over, as the source has no table of them"]


def test_an_official_checkpoint_is_trained_on(tmp_path, shared, capsys):
    fixtures = shared / "parity" / "fixtures"
    converted = ["--out", str(tmp_path / "model"), "--config", str(fixtures / "config.json")]
    assert official(["convert", str(fixtures / "ckpt_tx_fac"), *converted]) == 0
    arguments = ("--init", tmp_path / "model", "--out", tmp_path / "run", "--set=data.builtin_clips=24")
    assert command(*arguments, *FEW, "--steps=1", "--set=optim.warmup=0", "--set=eval_windows=1") == 0
    assert "no list of them" in (tmp_path / "run" / "init.txt").read_text()
    assert train.RANDOM_TABLE in capsys.readouterr().out


def test_word_vectors_fill_the_table_and_freeze_it(source, tmp_path, cache, capsys):
    words = (source / "vocabulary.txt").read_text().split()
    (tmp_path / "vectors.txt").write_text(f"{words[5]}{' 0.5' * 16}\nnonesuch{' 1' * 16}\n")
    arguments = ("--init", source, "--word-vectors", tmp_path / "vectors.txt", "--out", tmp_path / "run")
    data = ("--data", build_corpus(clips=24, progress=False), "--set=eval_windows=1", "--set=optim.warmup=0")
    assert command(*arguments, *data, *FEW, "--steps=1") == 0
    before, after = read_source(source)[WORD_TABLE], read_source(tmp_path / "run")[WORD_TABLE]
    assert torch.equal(after[5], torch.full((16,), 0.5))
    assert torch.equal(after[6:], before[6:])  # nothing of it is trained
    assert f"word vectors: 1 of {len(words)} words found" in capsys.readouterr().out
    assert f"no vector: {words[6]}\n" in (tmp_path / "run" / "init.txt").read_text()


def test_a_new_table_is_trained_unless_it_is_filled(capsys):
    """Runs of before have it in their record whether theirs is; the release's presets froze a random one."""
    assert command("--preset=mbs", "--print-config") == 0
    assert json.loads(capsys.readouterr().out)["model"]["text"]["freeze_embedding"] is False
    assert Config().model.text.freeze_embedding is True  # of a record that does not say


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--init=nowhere"], 1, "neither a folder"),
        (["--init={source}", "--preset=tiny"], 2, "has shape"),
        (["--init={source}", "--set=model.kind=agnostic"], 2, "no encoder of it"),
        (["--init={source}", "--freeze=txt"], 2, "video, audio, text"),
        (["--init={source}", "--lr-scale=video"], 2, "video=0.1"),
        (["--init={source}", "--lr-scale=text=0"], 2, "above 0"),
        (["--init={source}", "--freeze=text", "--lr-scale=text=0.5"], 2, "freeze names too"),
        (["--preset=tiny_ma", "--freeze=text"], 2, "one encoder for all"),
        (["--init={source}", "--word-vectors=nowhere.txt"], 2, "nowhere.txt"),
        (["--word-vectors={vectors}"], 2, "vectors of 16 numbers and the model's word table 64"),
        (["--init={source}", "--data={data}", "--word-vectors={vectors}"], 2, "none of the 59 words"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_writes_nothing(arguments, code, message, source, tmp_path, capsys, cache):
    names = {"source": source, "data": build_corpus(clips=24, progress=False), "vectors": tmp_path / "vectors.txt"}
    names["vectors"].write_text(f"nonesuch{' 0.5' * 16}\n")
    out = tmp_path / "run"
    assert command(*(a.format(**names) for a in arguments), "--out", out, *FEW) == code
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_resumed_run_keeps_what_it_began_with(continued, source, capsys):
    assert command("--out", continued, "--resume", "--init", source) == 2
    assert command("--out", continued, "--resume", "--freeze=text") == 2
    assert "freeze: 'text,audio' -> 'text'" in capsys.readouterr().err
