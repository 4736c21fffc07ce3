"""The search command as its users meet it: ranks, queries of three kinds, several indices, wrong input."""

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from helpers.small_model import write_model

from vatt import embed, search
from vatt.config.model import AudioConfig
from vatt.data.decoding.audio import read_sound_windows
from vatt.data.decoding.container import BadClip
from vatt.data.manifest import read_manifest
from vatt.inference.features_file import read_features


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def model(folder, corpus) -> Path:
    return write_model(folder / "run", corpus)


@pytest.fixture(scope="module")
def index(folder, model, corpus) -> Path:
    """All 24 clips, one window each."""
    out = folder / "all.npz"
    assert embed.main([f"--model={model}", f"--data={corpus}", f"--out={out}", "--windows=1"]) == 0
    return out


def ask(capsys, *arguments) -> list[dict]:
    """Queries of the JSON answer."""
    assert search.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["queries"]


def test_a_text_ranks_clips_by_cosine(index, capsys):
    arrays = read_features(index).arrays
    caption = int(arrays["text_clip"].searchsorted(5))
    text = arrays["caption"][caption]
    (answer,) = ask(capsys, "--index", index, text, "--top", 24)
    assert (answer["kind"], answer["query"]) == ("text", text)
    a, b = arrays["text_embedding"][caption].astype(np.float64), arrays["video_to_text"].astype(np.float64)
    cosine = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
    order = np.argsort(-cosine)
    results = answer["results"]
    assert [r["rank"] for r in results] == list(range(1, 25))
    assert [r["path"] for r in results] == arrays["path"][order].tolist()
    np.testing.assert_allclose([r["cosine"] for r in results], cosine[order], atol=1e-5)
    clip = order[0]
    assert results[0]["captions"] == arrays["caption"][arrays["text_clip"] == clip].tolist()
    assert (results[0]["windows"], results[0]["start"], results[0]["end"]) == (1, 0.0, None)


def test_a_video_finds_itself(index, corpus, capsys):
    clips = read_manifest(corpus)
    answers = ask(capsys, "--index", index, "--video", clips[3].path, "--video", clips[17].path, "--top", 2)
    for clip, answer in zip((clips[3], clips[17]), answers, strict=True):
        assert answer["results"][0]["path"] == str(clip.path)
        assert answer["results"][0]["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert answer["results"][1]["cosine"] < 0.9999


def test_a_sound_is_compared_with_what_videos_say_to_sound(index, model, corpus, tmp_path, capsys):
    clip = read_manifest(corpus)[3]
    (answer,) = ask(capsys, "--index", index, "--audio", clip.path, "--top", 24)
    arrays = read_features(index).arrays
    a, b = arrays["audio_embedding"][3].astype(np.float64), arrays["video_to_audio"].astype(np.float64)
    cosine = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
    found = {r["path"]: r["cosine"] for r in answer["results"]}
    # The window begins with the sound track here, with the pictures there: milliseconds apart.
    np.testing.assert_allclose([found[path] for path in arrays["path"].tolist()], cosine, atol=0.02)


def test_the_table_and_warnings_are_for_reading(index, capsys):
    assert search.main(["--index", str(index), "a zebra square", "the circle", "--top", "3"]) == 0
    said = capsys.readouterr()
    assert "'zebra'" in said.err
    assert "'square'" not in said.err
    lines = said.out.splitlines()
    assert lines[0] == "text: a zebra square"
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert ".mp4" in lines[2]
    assert "(+4)" in lines[2]
    assert "text: the circle" in lines


def test_several_indices_are_one(index, model, corpus, folder, capsys):
    files = []
    for split in ("train", "test"):
        files.append(folder / f"{split}.npz")
        assert (
            embed.main([f"--model={model}", f"--data={corpus}", f"--out={files[-1]}", "--windows=1", "--split", split])
            == 0
        )
    capsys.readouterr()
    one, several = ask(capsys, "--index", index, "a square"), ask(capsys, "a square", "--index", *files)
    assert [r["path"] for r in one[0]["results"]] == [r["path"] for r in several[0]["results"]]
    assert one[0]["results"][0]["captions"] == several[0]["results"][0]["captions"]
    (twice,) = ask(capsys, "a square", "--index", index, index.parent / "." / index.name, "--top", 48)
    assert len(twice["results"]) == 24


def test_sound_files_are_told_of_and_not_ranked(index, model, corpus, tmp_path, capsys):
    write_wave(tmp_path / "a.wav", np.arange(16_000) % 500, 16_000)
    for name, rows in (("mixed", f"a.wav,a square\n{read_manifest(corpus)[3].path},a ring\n"), ("alone", "a.wav,\n")):
        (tmp_path / f"{name}.csv").write_text(f"path,caption\n{rows}")
        assert (
            embed.main(
                [f"--model={model}", f"--data={tmp_path}/{name}.csv", f"--out={tmp_path}/{name}.npz", "--windows=1"]
            )
            == 0
        )
    capsys.readouterr()
    mixed = tmp_path / "mixed.npz"
    for query in (["a square"], ["--audio", str(tmp_path / "a.wav")]):
        assert search.main(["--index", str(index), str(mixed), *query, "--top=30", "--json"]) == 0
        said = capsys.readouterr()
        assert said.err == "1 clips without video are not ranked\n"
        results = json.loads(said.out)["queries"][0]["results"]
        assert len(results) == 25
        assert not any(result["path"].endswith(".wav") for result in results)
        assert ["a ring"] in [result["captions"] for result in results]
    assert search.main(["--index", str(tmp_path / "alone.npz"), "a square"]) == 1
    assert "none of the 1 clips has video" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_it_quietly(index):
    command = [sys.executable, "-m", "vatt.search", "--index", str(index), *["a square"] * 200, "--top=24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "text: a square\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_interrupted_exits_130(index, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "search", interrupt)
    assert search.main(["--index", str(index), "a square"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_index_of_another_model_is_refused(index, corpus, model, tmp_path, capsys):
    other = write_model(tmp_path / "other", corpus, seed=2)
    out = tmp_path / "other.npz"
    assert embed.main([f"--model={other}", f"--data={corpus}", f"--out={out}", "--windows=1", "--split=test"]) == 0
    assert search.main(["--index", str(index), str(out), "a square"]) == 1
    assert f"{out} was made by another model" in capsys.readouterr().err
    assert search.main(["--index", str(index), "a square", "--model", str(other)]) == 1
    assert "made by another model" in capsys.readouterr().err
    # The model moved: its record names a folder that is gone, --model the new one.
    other.rename(tmp_path / "moved")
    assert search.main(["--index", str(out), "a square"]) == 1
    assert "--model" in capsys.readouterr().err
    assert search.main(["--index", str(out), "a square", "--model", str(tmp_path / "moved")]) == 0


def test_a_model_without_word_list_needs_one_for_texts_only(index, model, corpus, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    words = (bare / "vocabulary.txt").rename(tmp_path / "words.txt")
    arguments = ["--index", str(index), "--model", str(bare)]
    assert search.main([*arguments, "a square"]) == 2
    assert "vocabulary.txt is missing" in capsys.readouterr().err
    assert search.main([*arguments, "--video", str(read_manifest(corpus)[0].path)]) == 0
    assert search.main([*arguments, "a square", "--vocabulary", str(words)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["zebra crossing"], 2, "none of these: 'zebra', 'crossing'"),
        (["?!"], 2, "no words"),
        (["--audio", "missing.wav"], 1, "missing.wav: missing"),
        (["--video", "missing.mp4"], 1, "missing.mp4: missing"),
        (["a square", "--device=cuda:99"], 2, "cuda:99"),
    ],
)
def test_queries_that_cannot_be_answered(index, capsys, arguments, code, message):
    assert search.main(["--index", str(index), *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--top=0", "a square"]])
def test_wrong_usage_exits_2(index, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        search.main(["--index", str(index), *arguments])
    assert stopped.value.code == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x04}q\x00."])
def test_files_that_are_no_index(tmp_path, content, capsys):
    (tmp_path / "f.npz").write_bytes(content)
    assert search.main(["--index", str(tmp_path / "f.npz"), "a square"]) == 1
    assert "vatt.embed writes" in capsys.readouterr().err
    assert search.main(["--index", str(tmp_path / "none.npz"), "a square"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_truncated_or_foreign_archive_is_an_error(index, tmp_path, capsys):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(index.read_bytes()[:-3000])
    np.savez(tmp_path / "foreign.npz", path=np.array(["a"]))
    np.savez(tmp_path / "pickled.npz", path=np.array([{}], dtype=object))
    for name in ("cut", "foreign", "pickled"):
        assert search.main(["--index", str(tmp_path / f"{name}.npz"), "a square"]) == 1
        assert f"{name}.npz" in capsys.readouterr().err


def write_wave(path: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def test_sound_files_are_cut_into_spaced_windows(tmp_path):
    samples = np.arange(4000)
    write_wave(tmp_path / "a.wav", samples, 8000)
    audio = AudioConfig(samples=1000, rate=8000)
    windows = read_sound_windows(tmp_path / "a.wav", audio, 3, 10.0)
    assert windows.dtype == np.float32
    assert (windows * 32768).round().astype(int).tolist() == [samples[i : i + 1000].tolist() for i in (0, 1500, 3000)]
    short = read_sound_windows(tmp_path / "a.wav", AudioConfig(samples=9000, rate=8000), 2, 10.0)
    assert (short[1] * 32768).round().astype(int).tolist() == [*range(4000), *range(4000), *range(1000)]


def test_sound_of_real_files(shared, index, tmp_path, capsys):
    flac = next((shared / "data/esc10/audio").glob("*.flac"))
    assert ask(capsys, "--index", index, "--audio", flac)[0]["results"]
    audio = AudioConfig(samples=8000, rate=8000)
    for name, message in (("awkward/result.webm", "cannot be read"), ("bikes.mp4", "no sound")):
        with pytest.raises(BadClip, match=message):
            read_sound_windows(shared / "data/clips" / name, audio, 2, 10.0)
    # Sound without pictures, and a damaged file whose sound can be read in part.
    assert read_sound_windows(shared / "data/clips/awkward/opus_audioinit.mp4", audio, 2, 10.0).any()
