"""Moments: where they start and end, and what the command makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media import steady, tone_burst, write_clip
from helpers.small_model import small_config, write_model

import vatt
from vatt import embed, search
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.datasets.moments import cut_moments
from vatt.data.datasets.windows import WindowReader
from vatt.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A folder with eight seconds of film, and a manifest of it and of a file that is none."""
    folder = tmp_path_factory.mktemp("film")
    write_clip(folder / "film.mp4", steady(8, 25), tone_burst(8.0, 2.0, 48_000))
    (folder / "bad.mp4").write_bytes(b"no film")
    (folder / "films.csv").write_text("path,caption,label\nfilm.mp4,a square | a ring,blue\nbad.mp4,a circle,red\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus) -> Path:
    return write_model(tmp_path_factory.mktemp("runs") / "run", corpus)


@pytest.mark.parametrize(
    ("span", "every", "length", "wanted"),
    [
        ((0.0, None), 2.0, 2.0, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        ((0.0, None), 3.0, 3.0, [(0, 3), (3, 6), (6, 8)]),
        ((0.0, None), 2.0, 4.0, [(0, 4), (2, 6), (4, 8)]),  # each overlaps the one before by a half
        ((1.0, 4.5), 1.0, 2.0, [(1, 3), (2, 4), (3, 4.5)]),
        ((0.0, None), 30.0, 30.0, [(0, 8)]),
        ((9.0, None), 1.0, 1.0, [(9, None)]),  # after the end: left for the reader to refuse
    ],
)
def test_moments_reach_the_end_and_no_further(film, span, every, length, wanted):
    row = Clip(7, film / "film.mp4", "film.mp4", *span, captions=("a square",), label="blue")
    moments = cut_moments(Manifest((row, row), film, ("blue",)), every, length, 0)
    assert [(m.start, m.end) for m in moments] == [(a, b if b is None else pytest.approx(b)) for a, b in wanted]
    assert [m.index for m in moments] == list(range(len(wanted)))
    assert {(m.path, m.label) for m in moments} == {(row.path, "blue")}
    assert moments[0].captions == ("a square", "a square")  # of both rows of the span


def test_moments_are_read_as_clips_of_their_own_each_frame_once(film, monkeypatch):
    """Batches in order, and one out of order, hold what rows of those spans do; each file is read in one go."""
    config, asked = small_config(), []
    read = WindowReader.read_moments
    monkeypatch.setattr(WindowReader, "read_moments", lambda *a: (asked.append(a[1].path.name), read(*a))[1])
    row = Clip(0, film / "film.mp4", "film.mp4")
    moments = cut_moments(Manifest((row, replace(row, path=film / "bad.mp4")), film, ()), 0.5, 2.0, 0)
    one, many = (
        EvalDataset(moments, config.data, config.model, Tokenizer([]), 2, 3, needs=(), moments=flag)
        for flag in (False, True)
    )
    # Alone, a span is decoded whole and its windows are cut out: their sound may lie up to a sample apart.
    sample = 0.5 * 2 * np.pi * 1000 / config.model.audio.rate
    batches = [many[index] for index in range(len(one))]
    assert asked == ["film.mp4"]
    for index, ours in enumerate(batches):
        theirs = one[index]
        assert (ours.clips, ours.bad) == (theirs.clips, theirs.bad)
        assert torch.equal(ours.video, theirs.video)
        assert (ours.audio - theirs.audio).abs().max() < sample
    assert theirs.bad[0][0] == len(moments) - 1
    alone = many[2]
    assert torch.equal(alone.video, batches[2].video)
    assert torch.equal(alone.audio, batches[2].audio)


def test_search_names_the_file_and_the_second(film, model, tmp_path, capsys, monkeypatch):
    """A crash loses a shard; the file in the end is that of an uninterrupted run, a row a moment."""
    monkeypatch.setattr(embed, "SHARD_CLIPS", 2)
    out, other = tmp_path / "m.npz", tmp_path / "m.parquet"
    flags = [f"--model={model}", f"--data={film / 'films.csv'}", "--every=1", "--window=2", "--batch-size=2"]
    monkeypatch.setattr(embed, "assemble", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed.main([*flags, f"--out={out}"])
    monkeypatch.undo()
    monkeypatch.setattr(embed, "SHARD_CLIPS", 2)
    assert embed.main([*flags, "--window=3", f"--out={out}", "--resume"]) == 1  # other moments
    assert embed.main([*flags, f"--out={out}", "--resume"]) == 0
    assert embed.main([*flags, f"--out={other}"]) == 0
    said = capsys.readouterr()
    assert "8 moments of 2 s, one every 1 s, 2 windows each" in said.out
    assert "bad.mp4" in said.err
    ours, theirs = (vatt.inference.features_file.read_features(path) for path in (out, other))
    assert ours.arrays["start"].tolist() == [float(n) for n in range(7)]
    assert ours.arrays["end"].tolist() == [float(n + 2) for n in range(7)]
    assert ours.arrays["text_clip"].tolist() == [n for n in range(7) for _ in range(2)]
    assert (ours.metadata["every"], ours.metadata["window"]) == (1, 2)
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    assert search.main([f"--index={out}", "a square", "--top=3"]) == 0
    assert search.main([f"--index={out}", "a square", "--top=3", "--per-file=1"]) == 0
    first, second = capsys.readouterr().out.split("text: a square\n")[1:]
    assert len(first.splitlines()) >= 4
    assert "film.mp4" in first
    (hit,) = second.strip().splitlines()[1:]
    assert hit in first  # the best of the file


def test_python_has_the_same_moments(film, model):
    features = vatt.embed(model, film / "film.mp4", every=3)
    assert features.arrays["start"].tolist() == [0.0, 3.0, 6.0]
    assert features.metadata["windows"] == 2  # of 1.6 s see all 3


@pytest.mark.parametrize("flags", [["--every=0"], ["--every=nan"], ["--every=1", "--window=-1"], ["--window=2"]])
def test_lengths_that_are_none_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        embed.main(["--model=m", "--data=d", "--out=o.npz", *flags])
    assert stopped.value.code == 2
    assert flags[-1].partition("=")[0] in capsys.readouterr().err


def test_a_damaged_file_is_named_once_and_not_for_each_moment(film, model, tmp_path, capsys):
    for name in ("good.mp4", "damaged.mp4"):
        write_clip(tmp_path / name, steady(8, 25))
    data = (tmp_path / "damaged.mp4").read_bytes()
    begins, ends = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    (tmp_path / "damaged.mp4").write_bytes(data[:begins] + bytes(ends - begins) + data[ends:])
    command = ["--model", str(model), "--data", str(tmp_path), "--every", "2", "--out", str(tmp_path / "out.npz")]
    command += ["--max-bad-share", "0.5"]
    assert embed.main(command) == 0
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "bad clip" in line]
    assert [line[line.index("bad clip") :].partition(": ")[2].partition(":")[0] for line in said] == ["damaged.mp4"] * 2
    assert said[1].endswith(": 4 rows")
