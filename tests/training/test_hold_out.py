"""Files that are held out by their names: which ones, and that training and evaluation agree on them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from vatt import evaluate, train
from vatt.config.data import DataConfig
from vatt.config.presets import tiny
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.hold_out import hold_out
from vatt.errors import ConfigError
from vatt.training.launch import open_source

TENTH = DataConfig(hold_out=0.1)


def corpus(root: Path, count: int) -> Manifest:
    """Two rows of each file."""
    rows = [Clip(i, root / f"{i // 2:04d}.mp4", f"{i // 2:04d}.mp4", start=i % 2) for i in range(2 * count)]
    return Manifest(tuple(rows), root, ())


def held(manifest: Manifest) -> list[str]:
    return sorted({clip.name for clip in manifest.split("test")})


def test_a_share_of_the_files_wherever_the_corpus_lies() -> None:
    found = hold_out(corpus(Path("/data/clips"), 1000), TENTH)
    assert 70 <= len(held(found)) <= 130  # 100, and three standard deviations
    assert len(found.split("test")) == 2 * len(held(found))  # both rows of a file
    assert held(found)[:3] == ["0003.mp4", "0021.mp4", "0022.mp4"]  # what runs have recorded must not move
    elsewhere = hold_out(corpus(Path("/mnt/other"), 500), TENTH)
    assert held(elsewhere) == [name for name in held(found) if name < "0500.mp4"]  # others were added since


def test_few_files_are_divided_too() -> None:
    assert len(held(hold_out(corpus(Path("/a"), 3), replace(TENTH, hold_out=1e-9)))) == 1
    assert len(held(hold_out(corpus(Path("/a"), 3), replace(TENTH, hold_out=1 - 1e-9)))) == 2
    assert held(hold_out(corpus(Path("/a"), 3), DataConfig())) == []
    with pytest.raises(ConfigError, match="and there are 1"):
        hold_out(corpus(Path("/a"), 1), TENTH)
    divided = hold_out(corpus(Path("/a"), 30), TENTH)
    with pytest.raises(ConfigError, match="has rows of split 'test', which are held out already"):
        hold_out(divided, TENTH)


def test_training_and_evaluation_hold_the_same_files_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        (tmp_path / f"{i}.mp4").touch()
    arguments = train.parse_arguments(["--data", str(tmp_path), "--hold-out", "0.25"])
    config = train.resolve_config(arguments)
    wanted = held(open_source(config.data))
    assert 1 <= len(wanted) <= 19
    for data in (None, [str(tmp_path)]):
        args = Namespace(data=data, columns="", split=None)
        assert held(evaluate.held_out_clips(args, config)) == wanted
    assert "warning" not in capsys.readouterr().err
    plain = replace(tiny(), data=replace(config.data, hold_out=0.0))
    evaluate.held_out_clips(Namespace(data=[str(tmp_path)], columns="", split=None), plain)
    assert "20 of them are of files that are trained on" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"data\.hold_out must be 0 for the built-in corpus"):
        train.resolve_config(train.parse_arguments(["--hold-out", "0.1"]))
    with pytest.raises(ConfigError, match=r"this would change data\.hold_out"):
        train.resolve_config(train.parse_arguments(["--hold-out", "0.1"]), config)
