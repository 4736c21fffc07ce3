"""Batches as a function of (seed, step), whatever the cache, the restarts and the broken files do."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.loader_corpus import DATA, GOOD, MODEL, PLAIN, RATE, good, same, training, words_of, write_corpus
from helpers.media import numbered_frame, numbers, onset, steady, tone_burst, write_clip
from helpers.media_alone import write_image, write_sound

from vatt.config.model import AudioConfig, VideoConfig
from vatt.data.bad_clips import BadClips
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.datasets.training import ClipDataset
from vatt.data.datasets.windows import WindowReader
from vatt.data.decoding.container import BadClip
from vatt.data.loader import make_loader
from vatt.data.manifest import read_manifest, write_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(corpus: Manifest) -> Tokenizer:
    return words_of(corpus)


def test_shapes_masks_and_labels(corpus: Manifest, tokenizer: Tokenizer) -> None:
    batch = training(corpus, tokenizer)[0]
    assert batch.video.shape == (4, 8, 32, 32, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.audio.shape == (4, 12_800)
    assert batch.text.shape == (4, 2, 4)
    seen = set()
    for step in range(8):
        batch = training(corpus, tokenizer)[step]
        for row, index in enumerate(batch.clips):
            seen.add(index)
            assert batch.audio_mask[row] == (index >= 2)
            assert index >= 2 or not batch.audio[row].any()
            assert batch.text_mask[row] == (not 2 <= index < 4)
            assert bool(batch.text[row].all(dim=1).any()) is False  # two words in four places
            assert bool(batch.text[row].any()) == (not 2 <= index < 4)
            assert batch.label[row] == (0 if index % 2 == 0 else -1)
    assert seen == set(range(GOOD))


def test_every_epoch_holds_every_clip_at_most_once(corpus: Manifest, tokenizer: Tokenizer) -> None:
    dataset = training(corpus, tokenizer)
    assert dataset.steps_per_epoch == 3
    epochs = [[dataset.planned(step, slot) for step in range(e, e + 3) for slot in range(4)] for e in (0, 3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1]
    small = ClipDataset(Manifest(corpus.clips[:3], corpus.root, corpus.labels), DATA, MODEL, tokenizer, 7)
    places = [small.planned(step, slot) for step in range(3) for slot in range(4)]
    assert all(sorted(places[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))  # wraps, evenly


def test_other_seeds_and_steps_give_other_batches(corpus: Manifest, tokenizer: Tokenizer) -> None:
    assert not same(training(corpus, tokenizer, seed=7)[0], training(corpus, tokenizer, seed=8)[0])
    one = Manifest(corpus.clips[5:6], corpus.root, corpus.labels)
    dataset = training(one, tokenizer)
    assert not torch.equal(dataset[0].video[0], dataset[0].video[1])  # slots draw apart
    assert not torch.equal(dataset[0].video, dataset[1].video)


def test_replacement_depends_on_the_step_only(corpus: Manifest, tokenizer: Tokenizer) -> None:
    veteran = training(corpus, tokenizer)
    history = [veteran[step] for step in range(9)]
    for step in (8, 2, 5):
        assert same(training(corpus, tokenizer)[step], history[step])  # one that has seen nothing
    for step, batch in enumerate(history):
        assert all(index < GOOD for index in batch.clips)
        planned = {veteran.planned(step, slot) for slot in range(4)}
        assert {index for index, _ in batch.bad} >= {index for index in planned if index >= GOOD}
        for index in batch.clips:  # whoever stands in was not in the batch already
            assert index in planned or index not in [i for i in planned if i < GOOD]
    reasons = {index: reason for batch in history for index, reason in batch.bad}
    assert reasons[GOOD] == "empty file"
    assert reasons[GOOD + 1].startswith("not a video")
    assert set(reasons) == {GOOD, GOOD + 1, GOOD + 2}


def test_cache_size_changes_nothing(corpus: Manifest, tokenizer: Tokenizer) -> None:
    # 2 s at 10 fps of 48 x 48 pixels and 16 kHz: about 0.2 MB a clip.
    sizes = [replace(DATA, cache_gb=gb, workers=1) for gb in (1.0, 5e-4, 1e-9)]
    datasets = [training(corpus, tokenizer, data) for data in sizes]
    for step in (0, 1, 2, 0, 3, 1):
        first, *others = [dataset[step] for dataset in datasets]
        assert all(same(first, other) for other in others)


def test_cached_windows_are_those_decoded_alone(corpus: Manifest) -> None:
    cached = WindowReader(MODEL.video, MODEL.audio, 64, 30.0, cache_bytes=10**8)
    alone = WindowReader(MODEL.video, MODEL.audio, 64, 30.0)
    for clip in (corpus[4], replace(corpus[6], index=50, start=0.5, end=1.9)):
        assert cached.last_offset(clip) == alone.last_offset(clip)
        for offset in range(alone.last_offset(clip) + 1):
            a, b = cached.read(clip, offset), alone.read(clip, offset)
            assert (a.video == b.video).all()
            assert a.audio is not None
            assert b.audio is not None
            assert a.audio.shape == b.audio.shape == (12_800,)
            heard = [w.audio is not None and np.abs(w.audio.astype(int)).max() > 8000 for w in (a, b)]
            assert heard[0] == heard[1]
            if heard[0]:
                assert abs(onset(a.audio, RATE) - onset(b.audio, RATE)) <= 2 / RATE
    assert alone.last_offset(corpus[4]) == 12
    assert alone.last_offset(replace(corpus[4], start=0.5, end=1.9)) == 6


def test_a_short_clip_repeats_with_sound_in_step(tmp_path: Path) -> None:
    write_clip(tmp_path / "short.mp4", steady(0.52, 25), tone_burst(0.52, 0.2, RATE, 0.05), RATE)
    clip = Clip(0, tmp_path / "short.mp4", "short.mp4")
    for cache in (0, 10**8):
        window = WindowReader(VideoConfig(20, 32, 10.0), AudioConfig(32_000, RATE), 64, 30.0, cache).read(clip, 0)
        period = 6  # 0.52 s begin six frames at 10 fps
        assert numbers(window.video)[:period] == [0, 2, 5, 7, 10, 12]
        assert (window.video == window.video[np.arange(20) % period]).all()
        assert window.audio is not None
        samples = period * RATE // 10
        assert (window.audio == window.audio[np.arange(32_000) % samples]).all()
        assert onset(window.audio[samples:], RATE) == pytest.approx(0.2, abs=1e-3)


def test_evaluation_covers_clips_in_order(corpus: Manifest, tokenizer: Tokenizer) -> None:
    data = replace(DATA, augment=PLAIN)
    dataset = EvalDataset(corpus, data, replace(MODEL, video=replace(MODEL.video, size=64)), tokenizer, windows=3)
    batches = list(make_loader(dataset, 0, len(dataset), 1))
    assert [index for batch in batches for index in batch.clips] == list(range(GOOD))
    assert [index for batch in batches for index, _ in batch.bad] == [GOOD, GOOD + 1, GOOD + 2]
    assert [index for batch in batches for index in batch.tried] == list(range(13))
    assert batches[0].video.shape == (4, 3, 8, 64, 64, 3)
    assert batches[0].audio.shape == (4, 3, 12_800)
    assert batches[3].video.shape == (0, 3, 8, 64, 64, 3)  # one chunk of bad clips only
    # 20 frames, windows of 8: offsets 0, 6, 12 at 10 fps of a 25 fps file.
    firsts = [numbers(window.numpy())[0] for window in batches[0].video[1]]
    assert firsts == [0, 15, 30]
    assert same(dataset[1], batches[1])


def test_evaluation_of_long_rows_reads_windows_one_by_one(tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", steady(24.0, 10), tone_burst(24.0, 12.0, RATE), RATE)
    clip = Clip(0, tmp_path / "long.mp4", "long.mp4")
    windows = WindowReader(MODEL.video, MODEL.audio, 64, 30.0).read_spaced(clip, 3)
    assert [numbers(window.video)[0] for window in windows] == [0, 116, 232]
    (middle,) = WindowReader(MODEL.video, MODEL.audio, 64, 30.0).read_spaced(clip, 3, slice(1, 2))
    assert (middle.video == windows[1].video).all()
    assert windows[1].audio is not None
    assert 11.6 + onset(windows[1].audio, RATE) == pytest.approx(12.0, abs=2e-3)


@pytest.fixture(scope="module")
def mixed(corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two images, two sounds, a clip without sound and one with: all there is in one manifest."""
    folder = tmp_path_factory.mktemp("mixed")
    write_image(folder / "90%d.png", numbered_frame(90))  # not a sequence of numbered images
    write_image(folder / "170.jpg", numbered_frame(170))
    write_sound(folder / "a.wav", tone_burst(2.0, 1.5, RATE), RATE)
    write_sound(folder / "b.flac", tone_burst(0.5, 0.2, RATE, 0.05), RATE)
    lines = ["path,caption,label", "90%d.png,a picture,dog | cat", "170.jpg,,cat", "a.wav,a tone,bird", "b.flac,,"]
    lines += [f"{corpus.root}/{i}.mp4,,bird" for i in (0, 5)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return read_manifest(folder / "manifest.csv")


def test_images_sounds_and_clips_share_a_batch(mixed: Manifest, tokenizer: Tokenizer) -> None:
    data, model = replace(DATA, augment=PLAIN), replace(MODEL, video=replace(MODEL.video, size=64))
    batch = EvalDataset(mixed, data, model, tokenizer, 2, 6, needs=())[0]
    assert not batch.bad
    assert batch.video_mask.tolist() == [1, 1, 0, 0, 1, 1]
    assert batch.audio_mask.tolist() == [0, 0, 1, 1, 0, 1]
    assert batch.text_mask.tolist() == [1, 0, 1, 0, 0, 0]
    assert batch.label.tolist() == [-1, 1, 0, -1, 0, 0]
    assert mixed.labels == ("bird", "cat", "dog")
    assert batch.labels.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert [numbers(view.numpy()) for view in batch.video[0]] == [[90] * 8] * 2
    assert numbers(batch.video[1, 0].numpy()) == [170] * 8
    assert not batch.video[2:4].any()
    assert not batch.audio[[0, 1, 4]].any()
    sound = (batch.audio * 32768).to(torch.int16).numpy()
    assert onset(sound[2, 1], RATE) == pytest.approx(1.5 - 1.2, abs=2e-4)  # windows of 0.8 s: the last one is at 1.2 s
    assert not sound[2, 0].any()
    assert (sound[3, 0, :4_800] == sound[3, 0, 8_000:]).all()  # half a second repeats
    assert onset(sound[3, 0, 8_000:], RATE) == pytest.approx(0.2, abs=2e-4)
    first = ClipDataset(mixed, replace(data, batch_size=6), model, tokenizer, 3, needs=())[0]
    assert sorted(first.clips) == list(range(6))
    assert [first.video_mask[first.clips.index(i)].item() for i in range(6)] == batch.video_mask.tolist()


@pytest.mark.parametrize(
    ("read", "needs", "used", "reason"),
    [
        (("video", "audio", "text"), ("video",), {0, 1, 4, 5}, "no video stream"),
        (("audio",), ("audio",), {2, 3, 5}, "no sound"),
        (("video", "text"), ("video", "text"), {0}, "no caption"),
    ],
)
def test_a_clip_without_what_the_task_needs_is_bad(
    mixed: Manifest, tokenizer: Tokenizer, read: tuple[str, ...], needs: tuple[str, ...], used: set[int], reason: str
) -> None:
    dataset = EvalDataset(mixed, DATA, MODEL, tokenizer, 2, 6, frames=4, read=read, needs=needs)
    batch = dataset[0]
    assert set(batch.clips) == used
    assert {index for index, _ in batch.bad} == set(range(6)) - used
    assert reason in {why for _, why in batch.bad}
    assert batch.video.shape == (len(used), 2, 4 if "video" in read else 0, 32, 32, 3)  # what is not read has no data
    assert batch.audio.shape == (len(used), 2, 12_800 if "audio" in read else 0)
    trained = ClipDataset(mixed, replace(DATA, batch_size=1), MODEL, tokenizer, 1, read=read, needs=needs)
    assert all(set(trained[step].clips) <= used for step in range(4))


def test_what_is_read_is_a_choice_among_modalities(mixed: Manifest, tokenizer: Tokenizer) -> None:
    for read, needs in ((("pictures",), ()), (("audio",), ("video",)), (("text",), ())):
        with pytest.raises(ValueError, match="video or audio among them"):
            EvalDataset(mixed, DATA, MODEL, tokenizer, read=read, needs=needs)


def test_batches_tell_what_they_cost(corpus: Manifest, tokenizer: Tokenizer) -> None:
    batch = training(good(corpus), tokenizer)[0]
    assert 0 < batch.decode_seconds < batch.seconds


def fake(clips: list[int], bad: list[tuple[int, str]]) -> Batch:
    nothing = torch.zeros(0)
    tried = clips + [index for index, _ in bad]
    return Batch(*[nothing] * 8, clips, tried, bad, 0.0, 0.0)


def test_record_of_bad_clips(corpus: Manifest, tmp_path: Path) -> None:
    record = BadClips(tmp_path / "bad_clips.csv", corpus, 0.1)
    new = record.add(3, fake([0, 1], [(12, "cut"), (10, "empty file")]))
    assert [(clip.name, reason) for clip, reason in new] == [("cut.mp4", "cut"), ("empty.mp4", "empty file")]
    assert record.add(4, fake([2], [(10, "empty file")])) == []  # named once
    record.write()
    with open(tmp_path / "bad_clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["reason"], row["first_step"], row["count"]) for row in rows] == [
        ("10", "empty file", "3", "2"),
        ("12", "cut", "3", "1"),
    ]
    assert rows[0]["path"] == str(corpus[10].path)
    assert (len(record), record.events, record.tried) == (2, 3, 5)
    assert record.share == 2 / 13  # of all clips there are: 5 tried say little, 13 all there is to say
    record.write()
    written = record.path.read_bytes()

    path = tmp_path / "state.pt"
    torch.save(record.state_dict(), path)
    again = BadClips(tmp_path / "again.csv", corpus, 0.1)
    again.load_state_dict(torch.load(path, weights_only=True))
    assert again.path.read_bytes() == written
    assert again.add(9, fake([0], [(12, "cut")])) == []
    again.check()  # 1 of 13: those of the process before do not count
    assert (len(again), again.events, again.tried) == (2, 4, 2)
    again.add(9, fake([], [(3, "x"), (4, "x")]))
    with pytest.raises(DataError, match=r"3 of 4 clips tried.*max_bad_share = 0\.1.*again\.csv"):
        again.check()
    with pytest.raises(DataError, match="13 clips"):
        BadClips(tmp_path / "x.csv", good(corpus), 0.1).load_state_dict(record.state_dict())


def test_a_run_that_stopped_resumes_once_its_files_are_mended(corpus: Manifest, tmp_path: Path) -> None:
    record = BadClips(tmp_path / "bad_clips.csv", corpus, 0.1)
    record.add(0, fake([0, 1], [(10, "cut")]))
    record.check()
    state, kept = record.state_dict(), record.path.read_bytes()
    record.add(1, fake([2], [(11, "cut"), (12, "cut")]))
    with pytest.raises(DataError, match="3 of 6"):
        record.check()
    mended = BadClips(record.path, corpus, 0.1)
    mended.load_state_dict(state)
    assert mended.path.read_bytes() == kept  # what step 1 saw is not true any more
    mended.add(1, fake([2, 11, 12], []))
    mended.check()
    mended.load_state_dict({"size": len(corpus), "records": []})
    assert not mended.path.exists()


def test_a_failed_write_of_the_record_leaves_the_old_one(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = BadClips(tmp_path / "bad_clips.csv", corpus, 0.1)
    record.add(0, fake([], [(10, "cut")]))
    before = record.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    for write in (
        lambda: record.add(1, fake([], [(11, "cut")])),
        lambda: Tokenizer(["dog"]).save(tmp_path / "words.txt"),
        lambda: write_manifest(tmp_path / "m.csv", corpus),
    ):
        with pytest.raises(OSError, match="disk full"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["bad_clips.csv"]
    assert record.path.read_bytes() == before


def test_a_file_name_that_is_no_text_is_written_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    manifest = Manifest((Clip(0, tmp_path / name, name),), tmp_path, ())
    record = BadClips(tmp_path / "bad_clips.csv", manifest, 1.0)
    record.add(0, fake([], [(0, "cut")]))
    assert b"/caf\xe9.mp4,0,cut,0,1" in record.path.read_bytes()


def test_a_row_beyond_the_end_of_its_file_is_bad(corpus: Manifest) -> None:
    for cache in (0, 10**8):
        rows = WindowReader(MODEL.video, MODEL.audio, 64, 30.0, cache)
        with pytest.raises(BadClip, match="the video ends"):
            rows.read(replace(corpus[4], start=5.0, end=8.0), 0)


def test_word_list_must_fit_the_table(corpus: Manifest) -> None:
    with pytest.raises(DataError, match="50 words but the model's table 40"):
        training(corpus, Tokenizer([f"w{i}" for i in range(48)]))


def test_real_corpus(shared: Path, tmp_path: Path) -> None:
    """Every clip of the real manifest, the awkward ones too, through the loader at once."""
    manifest = read_manifest(shared / "data/clips/manifest.csv")
    tokenizer = Tokenizer.build([caption for clip in manifest for caption in clip.captions], 1000)
    model = replace(MODEL, text=replace(MODEL.text, vocabulary=1000))
    dataset = ClipDataset(manifest, replace(DATA, batch_size=10), model, tokenizer, seed=1)
    record = BadClips(tmp_path / "bad_clips.csv", manifest, 0.3)
    events: list[tuple[int, str]] = []
    for step in range(5):
        batch = dataset[step]
        assert len(batch.clips) == 10
        record.add(step, batch)
        events += batch.bad
    record.check()
    assert record.tried == 50
    broken = {f"awkward/{name}" for name in ("corrupted.mp4", "no_timescale.mp4")}  # these have a good beginning
    hopeless = {
        "awkward/chunk_out_of_range.mp4",
        "awkward/invalid_userdata.mp4",
        "awkward/bipbop_nonfragment_header.mp4",
        "awkward/invalid-bitstream.webm",
        "awkward/result.webm",
        "awkward/opus_audioinit.mp4",
    }
    names = {manifest[index].name for index, _ in events}
    assert hopeless <= names <= hopeless | broken
