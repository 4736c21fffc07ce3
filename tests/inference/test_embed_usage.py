"""Wrong use of the embedding command: what it says, and that it leaves nothing behind."""

import sys
from pathlib import Path

import pytest
from helpers.small_model import write_model

from vatt import embed


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus) -> Path:
    return write_model(tmp_path_factory.mktemp("runs") / "run", corpus)


def run(model, data, out, *arguments) -> int:
    return embed.main([f"--model={model}", f"--data={data}", f"--out={out}", *map(str, arguments)])


def test_parquet_without_pyarrow_names_the_extra_before_any_work(model, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(model, corpus, tmp_path / "f.parquet") == 2
    assert "pip install -e '.[features]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out=f.txt"], 2, ".parquet"),
        (["--data=missing.csv"], 2, "missing.csv"),
        (["--split=nowhere"], 2, "it has: test, train"),
        (["--model=missing"], 1, "missing"),
        (["--device=cuda:99"], 2, "cuda:99"),
        (["--vocabulary=missing.txt"], 2, "missing.txt"),
    ],
)
def test_wrong_usage_says_what_is_wrong(model, corpus, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert run(model, corpus, "f.npz", *arguments) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["--windows=0", "--batch-size=0", "--dtype=float8", "--max-bad-share=-1",
                                      "--max-bad-share=nan"])  # fmt: skip
def test_values_out_of_range_exit_2(model, corpus, tmp_path, argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(model, corpus, tmp_path / "f.npz", argument)
    assert stopped.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err


def test_help_names_the_arrays_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        embed.main(["--help"])
    text = capsys.readouterr().out
    for word in ("--resume", "--windows", "--fused", "video_to_text [V,256]", "bad_reason", "exit codes"):
        assert word in text
