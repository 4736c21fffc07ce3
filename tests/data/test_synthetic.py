"""The built-in corpus: what it promises about splits, captions, pictures, sound, and about being written once."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.processes import begin

from vatt.data import synthetic
from vatt.data.clip import Manifest
from vatt.data.decoding.span import decode_span
from vatt.data.manifest import read_manifest
from vatt.data.synthetic import SyntheticClip, build_corpus, cache_folder, captions, plan, render_video

CLIPS = 24
ATTRIBUTES = ("shape", "colour", "motion")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    return read_manifest(build_corpus(folder, clips=CLIPS, seed=3, progress=False))


def parts(recipe: SyntheticClip) -> set[tuple[str, ...]]:
    values = [getattr(recipe, name) for name in ATTRIBUTES]
    return {part for size in (1, 2) for part in itertools.combinations(values, size)}


@pytest.mark.parametrize("seed", [0, 7])
def test_test_split_holds_out_100_combinations_whose_parts_are_all_trained_on(seed: int) -> None:
    recipes = plan(800, seed)
    split = {name: [r for r in recipes if r.split == name] for name in ("train", "test")}
    combinations = {name: {(r.shape, r.colour, r.motion) for r in rows} for name, rows in split.items()}
    assert [len(split["train"]), len(split["test"])] == [700, 100]
    assert len(combinations["test"]) == 100
    assert not combinations["train"] & combinations["test"]
    trained = set().union(*map(parts, split["train"]))
    assert trained == set().union(*map(parts, recipes))
    assert len(trained) == (5 + 8 + 8) + (5 * 8 + 5 * 8 + 8 * 8)
    for name in ATTRIBUTES:  # an uneven test split would make one attribute tell more than another
        counts = np.unique([getattr(r, name) for r in split["test"]], return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def test_each_caption_names_every_attribute_within_16_words() -> None:
    names: dict[str, dict[str, tuple[str, ...]]] = {
        "shape": synthetic.SHAPES,
        "colour": {c: (c,) for c in synthetic.COLOURS},
        "motion": synthetic.MOTIONS,
    }
    for recipe in plan(800, 0):
        sentences = captions(recipe, 0)
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert len(sentence.split()) <= 16
            for attribute, words in names.items():
                found = {value for value, ways in words.items() if any(f" {w} " in f" {sentence} " for w in ways)}
                assert found == {getattr(recipe, attribute)}, sentence


def test_manifest_lists_real_clips(corpus: Manifest) -> None:
    recipes = plan(CLIPS, 3)
    assert len(corpus) == CLIPS
    for clip, recipe in zip(corpus, recipes, strict=True):
        assert (clip.label, clip.split, list(clip.captions)) == (recipe.shape, recipe.split, captions(recipe, 3))
    with av.open(str(corpus[0].path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.audio[0].rate == 48_000
    span = decode_span(corpus[0].path, start=0.0, fps=10, frames=20, rate=8_000)
    assert span.video.shape == (20, 80, 80, 3)
    assert span.audio is not None
    assert span.audio.shape == (16_000,)


def test_decoded_picture_keeps_the_colour(corpus: Manifest) -> None:
    palette = np.array(list(synthetic.COLOURS.values()), float)
    for clip, recipe in zip(corpus, plan(CLIPS, 3), strict=True):
        video = decode_span(clip.path, start=0.0, fps=10, frames=20, rate=8_000).video
        pixels = video[inside(video)].astype(float)
        nearest = np.linalg.norm(palette - np.median(pixels, axis=0), axis=1).argmin()
        assert list(synthetic.COLOURS)[nearest] == recipe.colour


def inside(video: np.ndarray) -> np.ndarray:
    """Where the shape is: bool [T, H, W]. The background stays below 110."""
    return video.max(axis=3) > 130


def test_any_sixteen_frames_show_the_motion() -> None:
    for recipe in plan(160, 5):
        mask = inside(render_video(recipe, 5))
        for start in range(mask.shape[0] - 15):
            assert motion_in(mask[start : start + 16]) == recipe.motion


def motion_in(mask: np.ndarray) -> str:
    """Reads the motion from the area and the centre of the shape alone."""
    area = mask.sum(axis=(1, 2))
    if area.min() == 0:
        return "blink"
    growth = np.log(area[-4:].mean() / area[:4].mean())
    if abs(growth) > 0.8:
        return "grow" if growth > 0 else "shrink"
    y, x = (np.array([axis[m].mean() for m in mask]) for axis in np.mgrid[: mask.shape[1], : mask.shape[2]])
    if min(np.ptp(x), np.ptp(y)) > 8:
        return "orbit"
    if np.ptp(x) > np.ptp(y):
        return "right" if x[-1] > x[0] else "left"
    return "down" if y[-1] > y[0] else "up"


def test_the_shape_is_in_every_crop_that_scale_jitter_leaves() -> None:
    size = synthetic.SIZE
    kept = int(size * 0.8 / 1.2)
    for recipe in plan(160, 6):
        mask = inside(render_video(recipe, 6))
        for frame in mask[mask.any(axis=(1, 2))]:
            for first in (0, size - kept):
                assert frame[first : first + kept].any()
                assert frame[:, first : first + kept].any()


def test_half_of_the_patches_of_any_window_tell_every_attribute_by_sound(corpus: Manifest) -> None:
    rng = np.random.default_rng(0)
    for clip, recipe in zip(corpus, plan(CLIPS, 3), strict=True):
        audio = decode_span(clip.path, start=0.0, fps=10, frames=20, rate=8_000).audio
        assert audio is not None
        for start in (0, 1_600, 3_200):
            patches = audio[start : start + 12_800].reshape(100, 128)[rng.permutation(100)[:50]]
            for tones, value in (
                (synthetic.SHAPE_TONES, recipe.shape),
                (synthetic.COLOUR_TONES, recipe.colour),
                (synthetic.MOTION_TONES, recipe.motion),
            ):
                assert loudest(patches, tones) == value


def loudest(patches: np.ndarray, tones: dict[str, float]) -> str:
    waves = np.exp(-2j * np.pi * np.outer(np.arange(128), list(tones.values())) / 8_000)
    return list(tones)[(abs(patches * np.hanning(128) @ waves) ** 2).sum(axis=0).argmax()]


def test_tones_are_apart_and_survive_8_khz() -> None:
    tones = [*synthetic.SHAPE_TONES.values(), *synthetic.COLOUR_TONES.values(), *synthetic.MOTION_TONES.values()]
    assert min(np.diff(tones)) >= 125
    assert max(tones) < 3_500


def test_same_seed_same_files_and_other_seed_other_files(corpus: Manifest, tmp_path: Path) -> None:
    again = read_manifest(build_corpus(tmp_path / "again", clips=CLIPS, seed=3, progress=False))
    other = read_manifest(build_corpus(tmp_path / "other", clips=CLIPS, seed=4, progress=False))
    assert [c.path.read_bytes() for c in again] == [c.path.read_bytes() for c in corpus]
    assert [c.captions for c in other] != [c.captions for c in corpus]


def test_a_finished_corpus_is_used_again_and_foreign_folders_are_refused(corpus: Manifest) -> None:
    before = corpus[0].path.stat().st_mtime_ns
    assert build_corpus(corpus.root, clips=CLIPS, seed=3, progress=False) == corpus.root / "manifest.csv"
    assert corpus[0].path.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="name another folder or delete"):
        build_corpus(corpus.root, clips=CLIPS, seed=4, progress=False)
    with pytest.raises(FileExistsError, match="not a built-in corpus"):
        build_corpus(corpus.root / "clips", clips=CLIPS, seed=3, progress=False)


def test_an_interrupted_corpus_is_not_taken_for_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    write = synthetic.write_clip

    def full_disk(path: Path, frames: np.ndarray, wave: np.ndarray, version: int) -> None:
        if path.stem == "00003":
            raise OSError("no space left")
        write(path, frames, wave, version)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_clip", full_disk)
        with pytest.raises(OSError, match="no space left"):
            build_corpus(folder, clips=4, progress=False)
    assert not folder.exists()
    assert len(read_manifest(build_corpus(folder, clips=4, progress=False))) == 4
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["corpus"]


def test_two_processes_can_ask_for_the_same_corpus(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vatt.data.synthetic", "--out", str(tmp_path / "corpus"), "--clips", "40"]
    running = [begin(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == [str(tmp_path / "corpus/manifest.csv")] * 2
    assert [process.returncode for process in running] == [0, 0]
    assert all(clip.path.is_file() for clip in read_manifest(tmp_path / "corpus" / "manifest.csv"))


def test_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VATT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(800, 0).parent == tmp_path / "xdg" / "vatt"
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "own"))
    assert cache_folder(800, 0).parent == tmp_path / "own"
    assert len({cache_folder(800, 0), cache_folder(800, 1), cache_folder(400, 0)}) == 3
    assert build_corpus(clips=2, progress=False) == cache_folder(2, 0) / "manifest.csv"


def test_too_few_clips_are_an_error_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic.main(["--out", str(tmp_path / "corpus"), "--clips", "1"]) == 2
    assert "at least 2 clips" in capsys.readouterr().err
