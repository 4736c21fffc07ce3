"""The embedding command as its users meet it: what is in the file, resume, bad clips, wrong usage."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bfloat16 import skip_without_bfloat16
from helpers.media import numbered_frame, steady, tone_burst, write_clip
from helpers.media_alone import write_image, write_sound
from helpers.small_model import write_model

import vatt
from vatt import embed
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest
from vatt.evaluation import retrieval
from vatt.inference import embeddings, over_clips
from vatt.inference.features_file import NAMES, FeaturesError, read_features
from vatt.runtime.device import autocast_for


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus) -> Path:
    return write_model(tmp_path_factory.mktemp("runs") / "run", corpus)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(embed, "SHARD_CLIPS", 4)


def run(model, data, out, *arguments) -> int:
    return embed.main([f"--model={model}", f"--data={data}", f"--out={out}", "--batch-size=2", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, corpus) -> Path:
    out = tmp_path_factory.mktemp("features") / "whole.npz"
    assert run(model, corpus, out) == 0
    return out


def equal(a: dict, b: dict) -> bool:
    """Same names, kinds and values; NaN equals NaN."""
    if set(a) != set(b) or any(a[name].dtype.kind != b[name].dtype.kind for name in a):
        return False
    return all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a)


@pytest.fixture(scope="module")
def exact(model, corpus) -> dict:
    """The features in float64, by reference operations."""
    double, config, tokenizer = (
        vatt.load(model, fused=False).double(),
        vatt.load_config(model),
        vatt.load_tokenizer(model),
    )
    manifest = read_manifest(corpus)
    batch = EvalDataset(manifest, config.data, config.model, tokenizer, config.eval_windows, len(manifest))[0]
    ids = [tokenizer.encode(caption, config.model.text.words) for clip in manifest for caption in clip.captions]
    with torch.no_grad():
        video, audio, text = (
            double.backbone.features(name, x)[:, 0]
            for name, x in (
                ("video", batch.video.flatten(0, 1)),
                ("audio", batch.audio.flatten(0, 1).double()),
                ("text", torch.from_numpy(np.stack(ids))),
            )
        )
        to_audio, to_text = double.head.embed_video(video)
        features = {
            "video_pooled": video,
            "video_to_audio": to_audio,
            "video_to_text": to_text,
            "audio_pooled": audio,
            "audio_embedding": double.head.audio(audio),
        }
        features = {name: value.unflatten(0, (24, -1)).mean(1) for name, value in features.items()}
        features |= {"text_pooled": text, "text_embedding": double.head.text(text)}
    assert all(value.dtype == torch.float64 for value in features.values())
    return {name: value.numpy() for name, value in features.items()}


@pytest.fixture(scope="module")
def limits(model, corpus, exact) -> dict:
    """Largest error allowed: four times that of the evaluation command, which computes four of them on its own."""
    loaded, config = vatt.load(model), vatt.load_config(model)
    dataset = EvalDataset(
        read_manifest(corpus), config.data, config.model, vatt.load_tokenizer(model), config.eval_windows, 5
    )
    theirs = retrieval.embed_clips(loaded, dataset, autocast_for(torch.device("cpu"), torch.float32))
    pairs = {
        "video_to_text": theirs.video_text.mean(1),
        "video_to_audio": theirs.video_audio.mean(1),
        "audio_embedding": theirs.audio.mean(1),
        "text_embedding": theirs.text,
    }
    found = {name: 4 * np.abs(value.numpy() - exact[name]).max() for name, value in pairs.items()}
    assert max(found.values()) < 1e-3
    # Of the pooled features there is nothing but the file; the head after them only adds to the error.
    return found | {
        f"{name}_pooled": found[f"{name}_{of}"]
        for name, of in (("video", "to_audio"), ("audio", "embedding"), ("text", "embedding"))
    }


def test_features_are_those_of_the_model(whole, model, corpus, exact, limits):
    arrays, manifest = read_features(whole).arrays, read_manifest(corpus)
    assert arrays["path"].tolist() == [str(clip.path) for clip in manifest]
    assert arrays["row"].tolist() == list(range(24))
    assert arrays["label"].tolist() == [clip.label for clip in manifest]
    assert arrays["caption"].tolist() == [caption for clip in manifest for caption in clip.captions]
    assert arrays["text_clip"].tolist() == [i for i, clip in enumerate(manifest) for _ in clip.captions]
    assert arrays["audio_clip"].tolist() == list(range(24))
    for name, wanted in exact.items():
        assert arrays[name].shape == wanted.shape, name
        assert arrays[name].dtype == np.float32, name
        assert np.abs(arrays[name] - wanted).max() <= limits[name], name
    assert len(np.unique(arrays["video_to_text"].round(3), axis=0)) > 12


def test_the_file_needs_no_pickle_and_says_where_it_is_from(whole, model):
    with np.load(whole, allow_pickle=False) as archive:
        assert set(archive.files) == {*NAMES, "metadata"}
        assert all(archive[name].dtype.kind in "Uif" for name in archive.files)
    metadata = read_features(whole, ()).metadata
    assert metadata["model"] == str(model.absolute())
    assert metadata["clips"] == 24
    assert metadata["windows"] == 2
    assert set(metadata) >= {"weights_sha256", "config_sha256", "clips_sha256", "dtype", "operations", "bad_clips"}
    assert "argv" in metadata["environment"]
    assert not whole.with_name("whole.npz.parts").exists()


def test_batch_size_and_workers_change_rounding_at_most(whole, model, corpus, tmp_path, monkeypatch, exact, limits):
    monkeypatch.setattr(embed, "SHARD_CLIPS", 256)
    assert run(model, corpus, tmp_path / "a.npz", "--workers", 2, "--batch-size", 7) == 0
    ours, theirs = read_features(tmp_path / "a.npz").arrays, read_features(whole).arrays
    for name, wanted in exact.items():
        assert np.abs(ours.pop(name) - wanted).max() <= limits[name], name
        theirs.pop(name)
    assert equal(ours, theirs)


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_crash_loses_one_shard_and_resume_ends_with_the_same_file(whole, model, corpus, tmp_path, monkeypatch, after):
    out, write, computed = tmp_path / "whole.npz", over_clips.write_npz, []

    def crash(path, arrays):
        if len(list(path.parent.glob("*.npz"))) == after:
            raise MemoryError("the machine went away")
        write(path, arrays)

    monkeypatch.setattr(over_clips, "write_npz", crash)
    with pytest.raises(MemoryError):
        run(model, corpus, out)
    assert not out.exists()
    parts = out.with_name("whole.npz.parts")
    assert len(list(parts.glob("*.npz"))) == after
    monkeypatch.setattr(over_clips, "write_npz", lambda path, arrays: (computed.append(path), write(path, arrays)))
    assert run(model, corpus, out, "--resume") == 0
    assert len(computed) == 6 - after
    assert equal(read_features(out).arrays, read_features(whole).arrays)
    assert not parts.exists()
    assert run(model, corpus, out, "--resume") == 0  # nothing left to do
    assert len(computed) == 6 - after


def test_interrupted_exits_130_and_says_how_to_go_on(model, corpus, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(embeddings, "embed_batch", interrupt)
    assert run(model, corpus, tmp_path / "f.npz") == 130
    assert "--resume" in capsys.readouterr().err


def test_a_damaged_shard_is_made_again(whole, model, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "whole.npz"
    monkeypatch.setattr(embed, "assemble", lambda *a: sys.exit(9))
    with pytest.raises(SystemExit):
        run(model, corpus, out)
    monkeypatch.undo()
    monkeypatch.setattr(embed, "SHARD_CLIPS", 4)
    parts = out.with_name("whole.npz.parts")
    for shard, keep in ((1, 200), (4, 5000)):
        path = parts / f"{shard:06d}.npz"
        path.write_bytes(path.read_bytes()[:keep])
    assert run(model, corpus, out, "--resume") == 0
    said = capsys.readouterr().err
    assert "000001.npz" in said
    assert "000004.npz" in said
    assert "000002.npz" not in said
    assert equal(read_features(out).arrays, read_features(whole).arrays)


def test_resume_refuses_other_settings(model, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "f.npz"
    monkeypatch.setattr(embed, "assemble", lambda *a: sys.exit(9))
    with pytest.raises(SystemExit):
        run(model, corpus, out, "--windows", 1)
    assert run(model, corpus, out, "--windows", 1) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(model, corpus, out, "--resume", "--windows", 3) == 1
    assert "windows: 1, now 3" in capsys.readouterr().err


def test_the_dtype_that_it_began_with_is_kept(whole, model, corpus, tmp_path, capsys):
    """Whatever `auto` chooses on the machine, or the release, that goes on."""
    skip_without_bfloat16()
    out = tmp_path / "f.npz"
    assert run(model, corpus, out, "--dtype", "bfloat16", "--split", "test") == 0
    light, features = read_features(out, NAMES), read_features(whole, NAMES)
    assert light.metadata["dtype"] == "bfloat16"
    assert features.metadata["dtype"] == "float32"  # of so small a model, everywhere
    assert light.metadata["weights_sha256"] == features.metadata["weights_sha256"]
    assert run(model, corpus, out, "--split", "test", "--resume") == 0
    assert f"{out} is complete" in capsys.readouterr().out
    assert run(model, corpus, out, "--split", "test", "--resume", "--dtype", "float32") == 1
    assert "dtype: 'bfloat16', now 'float32'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b""])
def test_damaged_settings_are_named_with_the_way_out(model, corpus, tmp_path, capsys, content):
    parts = tmp_path / "f.npz.parts"
    parts.mkdir()
    (parts / "settings.json").write_bytes(content)
    assert run(model, corpus, tmp_path / "f.npz", "--resume") == 1
    said = capsys.readouterr().err
    assert "settings.json is damaged" in said
    assert f"delete {parts}" in said
    assert said.count("\n") == 1


def test_an_output_is_not_overwritten(whole, model, corpus, capsys):
    before = whole.read_bytes()
    assert run(model, corpus, whole) == 2
    assert "exists" in capsys.readouterr().err
    assert run(model, corpus, whole, "--resume", "--windows", 5) == 1
    assert whole.read_bytes() == before


@pytest.fixture
def mixed(corpus, tmp_path) -> Path:
    """Good clips between bad ones: a broken one, one that is not there, one without sound, rows of a long file."""
    good = read_manifest(corpus)
    (tmp_path / "broken.mp4").write_bytes(good[0].path.read_bytes()[:300])
    write_clip(tmp_path / "silent.mp4", steady(3.0, 10.0))
    rows = [
        f"{tmp_path}/gone.mp4,,,x,a",
        f"{good[0].path},0.5,1.5,?! | painted orange,a",
        "silent.mp4,,,,b",
        "broken.mp4,,,painted red,a",
        f"{good[1].path},1,,,a",
    ]
    path = tmp_path / "mixed.csv"
    path.write_text("path,start,end,caption,split\n" + "\n".join(rows) + "\n")
    return path


def test_bad_clips_are_named_counted_and_listed(mixed, model, corpus, tmp_path, capsys):
    assert run(model, mixed, tmp_path / "strict.npz") == 1  # 2 of 5 are too many, few as they are
    assert "2 of 4 clips tried" in capsys.readouterr().err
    assert run(model, mixed, tmp_path / "f.npz", "--max-bad-share", 0.5) == 0
    said = capsys.readouterr()
    assert "gone.mp4: missing" in said.err
    assert "broken.mp4" in said.err
    assert "3 clips, 3 with video, 2 with sound, 1 captions, 2 bad clips (left out" in said.out
    arrays = read_features(tmp_path / "f.npz").arrays
    assert arrays["row"].tolist() == [1, 2, 4]
    assert arrays["bad_row"].tolist() == [0, 3]
    assert arrays["bad_reason"][0] == "missing"
    assert arrays["bad_path"][1] == str(tmp_path / "broken.mp4")
    assert arrays["start"].tolist() == [0.5, 0.0, 1.0]
    assert arrays["end"][0] == 1.5
    assert np.isnan(arrays["end"][1:]).all()
    assert arrays["audio_clip"].tolist() == [0, 2]
    assert arrays["caption"].tolist() == ["painted orange"]  # a caption without words has no embedding
    assert arrays["text_clip"].tolist() == [0]
    assert arrays["split"].tolist() == ["a", "b", "a"]
    assert run(model, mixed, tmp_path / "b.npz", "--split", "b") == 0
    assert read_features(tmp_path / "b.npz").arrays["row"].tolist() == [2]


def test_too_many_bad_clips_stop_it_and_the_work_is_kept(model, corpus, tmp_path, capsys):
    clip = read_manifest(corpus)[0].path
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"gone{i}.mp4\n" for i in range(20)) + f"{clip}\n" * 4)
    out = tmp_path / "f.npz"
    assert run(model, tmp_path / "m.csv", out) == 1
    assert "--max-bad-share" in capsys.readouterr().err
    assert run(model, tmp_path / "m.csv", out, "--resume", "--max-bad-share", 1) == 0
    assert len(read_features(out).arrays["bad_row"]) == 20
    (tmp_path / "none.csv").write_text("path\ngone.mp4\n")
    assert run(model, tmp_path / "none.csv", tmp_path / "n.npz", "--max-bad-share", 1) == 1
    assert "none of the 1 clips" in capsys.readouterr().err


def test_a_model_without_word_list_embeds_video_and_sound(model, corpus, tmp_path, capsys, whole):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    words = (bare / "vocabulary.txt").rename(tmp_path / "words.txt")
    assert run(bare, corpus, tmp_path / "f.npz") == 0
    assert "captions are left out" in capsys.readouterr().out
    features = read_features(tmp_path / "f.npz")
    assert features.arrays["text_embedding"].shape == (0, 128)
    assert features.metadata["vocabulary_sha256"] is None
    assert run(bare, corpus, tmp_path / "g.npz", "--vocabulary", words) == 0
    assert equal(read_features(tmp_path / "g.npz").arrays, read_features(whole).arrays)


def test_real_clips(shared, model, tmp_path):
    rows = ["realshort.mp4", "sample.avi", "awkward/result.webm", "bbaf2n.mpg", "awkward/opus_audioinit.mp4"]
    folder = shared / "data/clips"
    (tmp_path / "m.csv").write_text("path,caption\n" + "".join(f"{folder / row},a real clip\n" for row in rows))
    assert run(model, tmp_path / "m.csv", tmp_path / "f.npz", "--max-bad-share", 1) == 0
    arrays = read_features(tmp_path / "f.npz").arrays
    assert arrays["row"].tolist() == [0, 1, 3, 4]
    assert arrays["video_clip"].tolist() == [0, 1, 2]  # the last one is sound alone
    assert 3 in arrays["audio_clip"]
    assert arrays["bad_reason"].tolist() == ["empty file"]
    assert all(np.isfinite(arrays[name]).all() for name in NAMES if arrays[name].ndim == 2)


@pytest.fixture
def kinds(corpus, tmp_path) -> Path:
    """Sound files first and between, an image, clips with and without sound."""
    good = read_manifest(corpus)
    write_sound(tmp_path / "a.wav", tone_burst(1.5, 0.2, 16_000, 1.0), 16_000)
    write_sound(tmp_path / "b.flac", tone_burst(1.0, 0.5, 16_000, 0.3), 16_000)
    write_image(tmp_path / "i.png", numbered_frame(90))
    write_clip(tmp_path / "silent.mp4", steady(3.0, 10.0))
    rows = [
        "a.wav,a tone",
        f"{good[3].path},painted red",
        "i.png,a square",
        "b.flac,",
        "silent.mp4,",
        f"{good[7].path},a ring",
    ]
    path = tmp_path / "kinds.csv"
    path.write_text("path,caption\n" + "\n".join(rows) + "\n")
    return path


def test_sounds_and_images_have_what_there_is_of_them(kinds, model, tmp_path, capsys, exact, limits):
    assert run(model, kinds, tmp_path / "f.npz") == 0
    assert "6 clips, 4 with video, 4 with sound" in capsys.readouterr().out
    arrays = read_features(tmp_path / "f.npz").arrays
    assert arrays["video_clip"].tolist() == [
        1,
        2,
        4,
        5,
    ]  # shards of two batches of two: positions are of the whole file
    assert arrays["audio_clip"].tolist() == [0, 1, 3, 5]
    for name, place, wanted in (("video_to_text", 0, 3), ("video_pooled", 3, 7), ("audio_embedding", 3, 7)):
        assert np.abs(arrays[name][place] - exact[name][wanted]).max() <= limits[name], name
    assert len(np.unique(arrays["audio_embedding"].round(4), axis=0)) == 4
    only = tmp_path / "only.csv"
    only.write_text("path\na.wav\nb.flac\n")
    assert run(model, only, tmp_path / "only.npz") == 0
    sounds = read_features(tmp_path / "only.npz").arrays
    assert sounds["video_to_text"].shape == (0, exact["video_to_text"].shape[1])
    apart = np.abs(sounds["audio_embedding"] - arrays["audio_embedding"][[0, 2]]).max()
    assert apart <= 2 * limits["audio_embedding"]


def test_a_file_of_an_older_format_says_what_to_do(whole, tmp_path):
    with np.load(whole) as archive:
        old = {name: archive[name] for name in archive.files if name != "video_clip"}
    old["metadata"] = np.array(str(old["metadata"]).replace('"format": 2', '"format": 1'))
    np.savez(tmp_path / "old.npz", **old)
    with pytest.raises(FeaturesError, match="has format 1, this version reads 2; embed the clips again"):
        read_features(tmp_path / "old.npz")


def test_parquet_holds_the_same(mixed, kinds, model, corpus, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pip install -e '.[features]'")
    pytest.importorskip("pyarrow", reason="pip install -e '.[features]'")
    for data in (mixed, corpus, kinds):
        npz, parquet = tmp_path / f"{data.stem}.npz", tmp_path / f"{data.stem}.parquet"
        assert run(model, data, npz, "--max-bad-share=0.5") == run(model, data, parquet, "--max-bad-share=0.5") == 0
        assert equal(read_features(npz).arrays, read_features(parquet).arrays)
        subset = read_features(parquet, ("path", "caption", "text_clip", "video_to_text")).arrays
        assert equal(subset, read_features(npz, tuple(subset)).arrays)
    table = pandas.read_parquet(tmp_path / "mixed.parquet")
    assert table.row.tolist() == [0, 1, 2, 3, 4]
    assert table.reason.isna().tolist() == [False, True, True, False, True]
    assert table.audio_embedding.isna().tolist() == [True, False, True, True, False]
    assert table.captions[1].tolist() == ["painted orange"]
    first = read_features(tmp_path / "mixed.npz").arrays
    assert np.array_equal(np.stack(table.video_to_text[table.reason.isna()]), first["video_to_text"])


def test_settings_are_kept_from_the_first_start(model, corpus, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    monkeypatch.setattr(embed, "assemble", lambda *a: sys.exit(9))
    with pytest.raises(SystemExit):
        run(model, corpus, out, "--split", "test")
    begun = json.loads((tmp_path / "f.npz.parts/settings.json").read_text())
    monkeypatch.undo()
    monkeypatch.setattr(embed, "SHARD_CLIPS", 4)
    assert run(model, corpus, out, "--split", "test", "--resume") == 0
    metadata = read_features(out, ()).metadata
    assert {name: metadata[name] for name in begun} == begun


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


@pytest.mark.parametrize(
    "argument", ["--windows=0", "--batch-size=0", "--dtype=float8", "--max-bad-share=-1", "--max-bad-share=nan"]
)
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
