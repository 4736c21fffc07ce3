"""Every program of examples/ runs, small, and the notebook holds what two of them hold."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.media import tone_burst
from helpers.media_alone import write_sound
from helpers.small_run import SMALL

import vatt
from vatt.data.manifest import read_manifest
from vatt.inference.features_file import assemble, read_features

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])  # of the actors
PROGRAMS = {path.stem for path in (ROOT / "examples").glob("*.py")}


def example(name: str) -> ModuleType:
    """The program as a module; it runs when its `main` is called."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clips(corpus, tmp_path_factory) -> Path:
    """A folder of eight clips with their captions, as somebody has them."""
    folder = tmp_path_factory.mktemp("examples") / "clips"
    folder.mkdir()
    for number, clip in enumerate(list(read_manifest(corpus))[:8]):
        shutil.copy(clip.path, folder / f"clip{number}.mp4")
        (folder / f"clip{number}.txt").write_text("\n".join(clip.captions))
    return folder


@pytest.fixture(scope="module")
def model(clips) -> Path:
    """A model that the example of training made of them."""
    out = clips.parent / "run"
    assert example("train_on_a_folder").main([str(clips), str(out), "--steps=2", *SMALL]) == 0
    return out / "model"


def test_programs_are_short_and_listed():
    pages = [(ROOT / "examples" / "README.md").read_text(), Path(__file__).read_text()]
    for name in PROGRAMS:
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 60, name
        assert f"({name}.py)" in pages[0]
        assert f'example("{name}")' in pages[1], f"no test runs {name}"


def test_train_on_a_folder_goes_on(model, clips):
    assert example("train_on_a_folder").main([str(clips), str(model.parent), "--resume"]) == 0


def test_load_and_embed(model, clips, capsys):
    embeddings = example("load_and_embed").main([str(model), str(clips)])
    assert set(embeddings) == {f"clip{number}.mp4" for number in range(8)}
    assert len({vector.shape for vector in embeddings.values()}) == 1
    assert all(vector.isfinite().all() for vector in embeddings.values())
    assert len(re.findall(r"^  -?\d\.\d{3}  \w", capsys.readouterr().out, re.MULTILINE)) == sum(
        len(clip.captions) for clip in read_manifest(clips)
    )


def test_search_your_clips(model, clips):
    texts = [read_manifest(clips)[0].captions[0], read_manifest(clips)[1].captions[0]]
    found = example("search_your_clips").main([str(model), str(clips), *texts, "--windows=1"])
    assert [len(set(names)) for names in found] == [5, 5]


def test_finetune_sound(model, tmp_path, capsys):
    for split, count in (("train", 4), ("test", 2)):
        for label, start in (("early", 0.2), ("late", 1.2)):
            folder = tmp_path / "sounds" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                write_sound(folder / f"{number}.wav", tone_burst(2.0, start + number / 20, 16_000), 16_000)
    ask = tmp_path / "sounds" / "test" / "late" / "0.wav"
    rest = ["--steps=2", "--batch-size=2", "--device=cpu", "--set=data.workers=0"]
    command = [str(tmp_path / "sounds"), str(model), str(tmp_path / "out"), f"--ask={ask}", *rest]
    assert example("finetune_sound").main(command) == 0
    shares = dict(reversed(line.split()) for line in capsys.readouterr().out.splitlines()[-2:])
    assert set(shares) == {"early", "late"}
    assert sum(map(float, shares.values())) == pytest.approx(1, abs=0.002)


def test_embed_with_ray(model, clips, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the example of Ray needs ray: pip install -e '.[ray]'")
    monkeypatch.syspath_prepend(ROOT / "examples")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": PATH}})
    try:
        out = tmp_path / "features.parquet"
        assert example("embed_with_ray").main([str(model), str(clips), str(out), "--size=4", "--actors=1"]) == 0
    finally:
        ray.shutdown()
    made, whole = read_features(out).arrays, vatt.embed(model, clips).arrays
    for name in whole:
        same = np.allclose if whole[name].dtype.kind == "f" else np.array_equal
        assert same(made[name], whole[name], **({"equal_nan": True, "atol": 1e-5} if same is np.allclose else {})), name


def test_a_part_without_a_readable_clip_stops_no_job(model, clips, tmp_path):
    for name in ("a0", "a1"):
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    shutil.copy(clips / "clip0.mp4", tmp_path)
    (parts := tmp_path / "parts").mkdir()
    embedder = example("embed_with_ray").Embedder(str(model), str(tmp_path), parts, 2)
    embedder({"id": np.arange(2)})
    about = {"model": str(model), "windows": 1, "weights_sha256": ""}
    counts = assemble(sorted(parts.iterdir()), tmp_path / "features.npz", about)
    assert (counts["clips"], counts["bad_clips"]) == (1, 2)
    made = read_features(tmp_path / "features.npz").arrays
    assert (made["row"].tolist(), sorted(made["bad_row"].tolist())) == ([2], [0, 1])


def test_attention_kernel():
    differences = example("attention_kernel").main(["--device=cpu", "--tokens=48"])
    assert len(differences) == 5
    # Sums of at most 48 products of numbers near 1 in float32.
    assert max(differences.values()) < 48 * 8 * torch.finfo(torch.float32).eps


def test_custom_loop(clips):
    program = example("custom_loop")
    losses = program.main([str(clips), "--steps=2", "--batch-size=2", "--workers=0", "--device=cpu"])
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


def test_the_notebook_is_that_of_the_programs_and_runs(model, clips, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import notebook

    assert notebook.NOTEBOOK.read_text(encoding="utf-8") == notebook.notebook(), "run python .ci/notebook.py"
    book = json.loads(notebook.notebook())
    assert {cell["id"] for cell in book["cells"]} == {f"cell-{i}" for i in range(len(book["cells"]))}
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for kind, text in notebook.cells():
        if kind == "code":
            text = text.replace('"runs/tiny/model"', repr(str(model)))
            exec(text.replace("CLIPS = build_corpus(clips=24)", f"CLIPS = {str(clips)!r}"), names)
    assert len(names["found"]) == 2
