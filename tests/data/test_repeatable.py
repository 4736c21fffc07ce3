"""What is generated from a seed is a function of the seed: clips encoded side by side have the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.media import steady, tone_burst, write_clip

from vatt.data import synthetic
from vatt.data.clip import ManifestError
from vatt.data.manifest import read_manifest
from vatt.data.transcode import __main__ as transcode
from vatt.data.transcode import encode

CORPUS = """
import hashlib, sys
from pathlib import Path
from vatt.data.synthetic import plan, render_audio, render_video, write_clip
for recipe in plan(8, 3):
    path = Path(sys.argv[1]) / f"{recipe.index}.mp4"
    write_clip(path, render_video(recipe, 3), render_audio(recipe, 3))
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""
ENCODE = """
import hashlib, sys
from pathlib import Path
from vatt.data.clip import Clip
from vatt.data.transcode.encode import Encoding, encode_clip
source, out, codec = map(str, sys.argv[1:4])
made = encode_clip(Clip(0, Path(source), "a"), Path(out) / "a", Encoding(codec, size=80), 100.0)
print(hashlib.sha256((Path(out) / made.name).read_bytes()).hexdigest())
"""


def side_by_side(
    program: str, folder: Path, before: tuple[str, ...], after: tuple[str, ...], times: int = 3
) -> set[str]:
    running = []
    for number in range(times):
        out = folder / str(number)
        out.mkdir()
        words = [*before, str(out), *after]
        running.append(subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True))
    said = {process.communicate(timeout=300)[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    return said


def test_the_built_in_corpus(tmp_path: Path) -> None:
    assert len(side_by_side(CORPUS, tmp_path, (), ())) == 1


@pytest.mark.parametrize("codec", encode.CODECS)
def test_transcoded_clips(codec: str, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", steady(2.0, 10), tone_burst(2.0, 0.5, 48_000), size=80)
    assert len(side_by_side(ENCODE, tmp_path, (str(source),), (codec,))) == 1


def test_the_corpus_of_an_earlier_format_is_taken_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VATT_CACHE", str(tmp_path))
    with pytest.raises(ManifestError, match=r"python -m vatt\.data\.synthetic --clips 4 --seed 0 --format 1"):
        synthetic.corpus_of(1, 4)
    synthetic.main(["--clips", "4", "--format", "1"])
    first = synthetic.corpus_of(1, 4)
    assert capsys.readouterr().out.strip() == str(first)
    second = synthetic.corpus_of(synthetic.FORMAT, 4)
    assert first != second
    rows = [[(c.name, c.captions, c.label, c.split) for c in read_manifest(path)] for path in (first, second)]
    assert rows[0] == rows[1]
    assert json.loads((first.parent / "corpus.json").read_text())["format"] == 1


def test_a_transcoded_corpus_goes_on_in_the_format_it_began_with(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_clip(source / "a.mp4", steady(1.0, 10))
    assert transcode.main([str(source), "--out", str(out), "--workers", "1"]) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["format"] == encode.FORMAT
    (out / "settings.json").write_text(json.dumps(settings | {"format": 1}))
    assert transcode.main([str(source), "--out", str(out), "--resume", "--workers", "1"]) == 0
    assert json.loads((out / "settings.json").read_text())["format"] == 1
    assert json.loads((out / "report.json").read_text())["recipe"]["format"] == 1
