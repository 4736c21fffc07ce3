"""A model folder becomes a model: vatt.load, and the hub's mixin where it is installed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_model import small_config, write_model
from safetensors.torch import load_file, save_file

import vatt
from vatt.checkpoints.fingerprints import weights_fingerprint
from vatt.checkpoints.loading import load_vatt
from vatt.checkpoints.model_folder import model_folder
from vatt.config.presets import tiny_ma
from vatt.data.tokenizer import VocabularyError
from vatt.errors import RunError
from vatt.model.vatt import VATT, Classifier
from vatt.official.convert import write_folder
from vatt.official.infer_config import Description


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> Path:
    """Folder of a run; its model is in model/."""
    return write_model(tmp_path_factory.mktemp("runs") / "run", next(cache.rglob("manifest.csv"))).parent


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_importing_vatt_imports_no_torch():
    code = "import sys, vatt; assert 'torch' not in sys.modules; vatt.load; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="laod"):
        vatt.laod  # noqa: B018


@pytest.mark.parametrize("part", [".", "model"])
def test_load_gives_model_config_and_tokenizer(run, part):
    model = vatt.load(run / part)
    assert isinstance(model, VATT)
    assert not model.training
    assert vatt.load_config(run / part) == small_config()
    tokenizer = vatt.load_tokenizer(str(run / part))
    ids = torch.from_numpy(tokenizer.encode("a red square", 8))
    with torch.no_grad():
        text = model.embed_text(ids[None, None])
        reference = vatt.load(run, fused=False).embed_text(ids[None, None])
    assert text.shape == (1, 1, 128)
    torch.testing.assert_close(text, reference)


def test_load_of_a_fine_tuned_model(tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(small_config().model, "audio", 5)
    description = Description(small_config().model, modality="audio", classes=5)
    write_folder(tmp_path / "model", description, classifier.state_dict(), None, {})
    loaded = vatt.load(tmp_path / "model")
    assert isinstance(loaded, Classifier)
    assert not loaded.training
    assert same(loaded, classifier)
    with pytest.raises(RunError, match="fine-tuned"):
        load_vatt(tmp_path / "model")


def test_load_says_what_is_wrong(run, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        vatt.load(tmp_path)
    shutil.copytree(run / "model", tmp_path / "m")
    (tmp_path / "m/vocabulary.txt").unlink()
    assert vatt.load(tmp_path / "m").training is False  # only reading text needs it
    with pytest.raises(VocabularyError, match=r"vocabulary\.txt is missing.*--vocabulary"):
        vatt.load_tokenizer(tmp_path / "m")
    saved = json.loads((tmp_path / "m/config.json").read_text())
    saved["config"]["model"]["video_encoder"]["layers"] = 2
    (tmp_path / "m/config.json").write_text(json.dumps(saved))
    with pytest.raises(
        RunError,
        match=r"model\.safetensors does not fit .*config\.json: .*video\.layers\.1\.\S* is "
        r"missing, and \d+ more differ$",
    ) as error:
        vatt.load(tmp_path / "m")
    assert "\n" not in str(error.value)
    for wrong in ({}, [], None, {"modality": "smell", "classes": 5}, {"modality": "audio", "classes": 0}):
        (tmp_path / "m/config.json").write_text(json.dumps({**saved, "classifier": wrong}))
        with pytest.raises(RunError, match=r'config\.json: "classifier" must hold'):
            vatt.load(tmp_path / "m")
    (tmp_path / "m/config.json").write_text(json.dumps(saved))
    (tmp_path / "m/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"model\.safetensors"):
        vatt.load(tmp_path / "m")


def test_weights_in_parts_are_read_by_their_index(run, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(model_folder(run), folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    whole, parts = vatt.load(run), vatt.load(folder)
    assert weights_fingerprint(parts) == weights_fingerprint(whole)
    for content in ("{", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../model.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(RunError, match=r"index\.json"):
            vatt.load(folder)
    index.write_text(json.dumps({"weight_map": files | {"more": "model-3.safetensors"}}))
    with pytest.raises(RunError, match=r"model-3\.safetensors is missing"):
        vatt.load(folder)


def test_a_file_in_place_of_a_folder(run, tmp_path):
    folder = model_folder(run)
    assert weights_fingerprint(vatt.load(folder / "model.safetensors")) == weights_fingerprint(vatt.load(run))
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(RunError, match=r"model\.pt is a file; give the folder"):
        vatt.load(tmp_path / "model.pt")
    (tmp_path / "alone.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"config\.json is missing"):
        vatt.load(tmp_path / "alone.safetensors")


def test_fingerprint_is_of_the_weights_alone(run):
    first, second = vatt.load(run), vatt.load(run, fused=False)
    assert weights_fingerprint(first) == weights_fingerprint(second)
    with torch.no_grad():
        second.head.text.bias[0] += 1
    assert weights_fingerprint(first) != weights_fingerprint(second)


def test_without_huggingface_hub_the_error_names_the_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = vatt.VATT.from_pretrained(run)  # a folder needs no hub
    for asked in (lambda: vatt.VATT.from_pretrained("user/name"), lambda: model.save_pretrained(tmp_path / "saved")):
        with pytest.raises(ImportError, match=r"pip install -e '\.\[hub\]'"):
            asked()


def test_there_is_one_vatt(run):
    assert type(vatt.load(run)) is vatt.VATT is VATT
    assert vatt.Classifier is Classifier


@pytest.fixture
def hub():
    return pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")


@pytest.mark.parametrize("part", [".", "model"])
def test_pretrained_round_trip_is_bit_equal(hub, run, tmp_path, part):
    model = vatt.VATT.from_pretrained(run / part)
    assert isinstance(model, VATT)
    assert not model.training
    assert same(model, vatt.load(run))
    model.save_pretrained(tmp_path / "saved")
    again = vatt.VATT.from_pretrained(tmp_path / "saved")
    assert same(again, model)
    assert again.settings == model.settings == vatt.load_config(run)
    assert again.tokenizer.words == model.tokenizer.words == vatt.load_tokenizer(run).words
    # What it wrote is a model folder like any other.
    assert same(vatt.load(tmp_path / "saved"), model)
    assert "vatt" in (tmp_path / "saved/README.md").read_text()


def test_a_new_model_without_words_is_saved_and_read_back(hub, tmp_path):
    config = replace(tiny_ma().model, shared_encoder=small_config().model.text_encoder)
    torch.manual_seed(0)
    model = VATT(config)
    model.save_pretrained(tmp_path)
    assert same(VATT.from_pretrained(tmp_path), model)
    assert VATT.from_pretrained(tmp_path).tokenizer is None
    assert VATT.from_pretrained(tmp_path).settings.model == config
    with pytest.raises(TypeError, match="fussed"):
        VATT.from_pretrained(tmp_path, fussed=True)


def test_a_hub_id_is_downloaded_by_huggingface_hub(hub, run, monkeypatch):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(run / "model")

    monkeypatch.setattr(hub, "snapshot_download", download)
    model = vatt.VATT.from_pretrained("someone/vatt-tiny", revision="v1", local_files_only=True)
    assert same(model, vatt.load(run))
    assert (asked["repo_id"], asked["revision"], asked["local_files_only"]) == ("someone/vatt-tiny", "v1", True)
    assert set(asked["allow_patterns"]) == {
        "config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        "vocabulary.txt",
    }


def test_push_uploads_a_whole_model_folder(hub, run, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            pushed.update(repo_id=repo_id, model=vatt.load(folder_path), words=vatt.load_tokenizer(folder_path).words)
            return "url"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert vatt.VATT.from_pretrained(run).push_to_hub("someone/vatt-tiny") == "url"
    assert pushed["repo_id"] == "someone/vatt-tiny"
    assert same(pushed["model"], vatt.load(run))
    assert pushed["words"] == vatt.load_tokenizer(run).words
