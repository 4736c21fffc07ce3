"""The GPU path: packets hold the frames that PyAV decodes, the graph, run on a CPU, gives the pixels of the PyAV path.

What needs DALI is skipped without it (pip install -e '.[dali]'). Nothing here needs a GPU, and nothing tests one.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from helpers.media import numbered_frame, numbers, steady, tone_burst, write_clip

from vatt.config.data import AugmentConfig, DataConfig
from vatt.config.model import AudioConfig, ModelConfig, TextConfig, VideoConfig
from vatt.data.clip import Clip, Manifest
from vatt.data.dali import loader as dali
from vatt.data.dali.colours import colour_matrix
from vatt.data.dali.graph import UNCHANGED, build_graph, finish_graph, start_graph, warp_matrix
from vatt.data.dali.loader import EncodedBatch, EncodedClips, choose_decoder, make_dali_loader
from vatt.data.dali.packets import Cut, Unsuitable, cut_packets
from vatt.data.datasets.augment import VideoDraw, draw_video, train_video
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.training import ClipDataset
from vatt.data.decoding.container import BadClip, opened
from vatt.data.decoding.orientation import Orientation
from vatt.data.decoding.span import decode_span
from vatt.data.tokenizer import Tokenizer
from vatt.data.transcode.encode import Encoding, encode_clip
from vatt.errors import ConfigError, DataError
from vatt.runtime.compatibility import COPIES_PACKETS

if not COPIES_PACKETS:
    pytest.skip("PyAV before 14.2 copies no packets", allow_module_level=True)
CPU = torch.device("cpu")
RATE = 16_000
MODEL = ModelConfig(
    video=VideoConfig(frames=8, size=48, fps=10.0),
    audio=AudioConfig(samples=12_800, rate=RATE),
    text=TextConfig(words=4, captions=2, vocabulary=40),
)
DATA = DataConfig(batch_size=4, workers=1)
ORIENTATIONS = [Orientation(*flags) for flags in product((False, True), repeat=3)]
PLAIN = AugmentConfig(scale_jitter=0.0, flip=False, colour_jitter=0.0, audio_noise=0.0)


@pytest.fixture
def needs_dali() -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install -e '.[dali]' brings it")


def write_video(
    path: Path,
    codec: str,
    width: int,
    height: int,
    picture: Callable[[int], np.ndarray],
    count: int = 30,
    **options: str,
) -> Path:
    """`picture(i)` uint8 [height, width, 3] at i / 25 seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options
        for i in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i))))
        container.mux(stream.encode(None))
    return path


def colourful(size: int) -> Callable[[int], np.ndarray]:
    y, x = np.mgrid[0:size, 0:size]

    def picture(i: int) -> np.ndarray:
        waves = [np.sin(x / 9 + i / 3) + np.cos(y / 7), np.sin((x + y) / 15 + i / 2) * 2, x * 4 / size - 2 + y * 0.0]
        return np.clip(np.stack(waves, 2) * 60 + 128, 0, 255).astype(np.uint8)

    return picture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Six clips for DALI on a CPU (VP9, MJPEG), the last one shorter than a window; one that only PyAV decodes there
    (H.264), and one that nothing does."""
    folder = tmp_path_factory.mktemp("dali")
    clips = []
    for i in range(6):
        sound = None if i == 0 else tone_burst(1.6, 0.1 * i, RATE)
        codec, name = ("libvpx-vp9", f"{i}.webm") if i % 2 else ("mjpeg", f"{i}.mkv")
        if codec == "mjpeg":
            write_video(folder / name, codec, 64, 80, lambda k, i=i: numbered_frame(k + 40 * i, 80)[:, :64], 40)
        else:
            write_clip(folder / name, steady(1.6, 25), sound, 48_000, codec, "libopus", ticks=1000)
        start, end = (0.3, 0.75) if i == 5 else (0.0, None)
        clips.append(Clip(i, folder / name, name, start, end, captions=(f"clip {i}",)))
    write_clip(folder / "6.mp4", steady(1.6, 25), tone_burst(1.6, 0.3, RATE), RATE)
    (folder / "7.webm").write_bytes((folder / "1.webm").read_bytes()[:100])
    clips += [Clip(6, folder / "6.mp4", "6.mp4"), Clip(7, folder / "7.webm", "7.webm")]
    return Manifest(tuple(clips), folder, ())


def training(corpus: Manifest, data: DataConfig = DATA, slots: range | None = None) -> ClipDataset:
    return ClipDataset(corpus, data, MODEL, Tokenizer(["clip"]), seed=5, slots=slots)


def cut(path: Path, start: float, frames: int = 12) -> Cut:
    with opened(path, 30.0, ("video",)) as reader:
        return cut_packets(reader, start, 10.0, frames, "gpu")


def decoded(cut: Cut) -> np.ndarray:
    """The frames of a cut, decoded by PyAV and counted as DALI does, by the times in the file."""
    with av.open(io.BytesIO(cut.data)) as container:
        frames = {frame.pts: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    at = sorted(frames)
    return np.stack([cut.orientation.upright(frames[at[place]]) for place in cut.frames])


CONTAINERS = (
    ("h264.mp4", "libx264", 90_000),  # B-frames
    ("h264.mkv", "libx264", 1000),
    ("h264.ts", "libx264", 90_000),
    ("h265.mp4", "libx265", 90_000),
    ("vp9.webm", "libvpx-vp9", 1000),
    ("vp8.webm", "libvpx", 1000),
    ("av1.mkv", "libsvtav1", 1000),
    ("mpeg4.avi", "mpeg4", 25),
)
UNEVEN = [0.0, 0.03, 0.3, 0.34, 0.72, 0.75, 1.0, 1.51, 1.6, 1.77, 2.2]


@pytest.mark.parametrize(("name", "codec", "ticks"), CONTAINERS)
def test_packets_hold_the_frames_that_pyav_decodes(name: str, codec: str, ticks: int, tmp_path: Path) -> None:
    times = [round(t * ticks) / ticks for t in (UNEVEN if ticks != 25 else steady(2.2, 25))]
    path = write_clip(tmp_path / name, times, video_codec=codec, gop=5, ticks=ticks, size=160)
    for start in (0.0, 0.7, 1.4):
        expected = decode_span(path, start=start, fps=10.0, frames=12, rate=RATE, read=("video",)).video
        got = cut(path, start)
        assert (decoded(got) == expected).all()
        assert len(av.open(io.BytesIO(got.data)).streams) == 1
    assert len(cut(path, 1.9).data) < path.stat().st_size  # from the key frame on


def test_packets_of_real_clips(shared: Path) -> None:
    """Nothing is cut that decodes otherwise; what is not for DALI says so, and both find the same clips bad."""
    same, unsuitable = [], {}
    for path in sorted((shared / "data/clips").rglob("*.*")):
        if path.suffix == ".csv" or path.name in ("corrupted.mp4", "no_timescale.mp4"):  # damaged inside of packets
            continue
        got = outcome(lambda path=path: cut(path, 0.5, 4))
        if isinstance(got, Unsuitable):
            unsuitable[path.name] = str(got)
            continue
        expected = outcome(
            lambda path=path: decode_span(path, start=0.5, fps=10.0, frames=4, rate=RATE, read=("video",)).video
        )
        if isinstance(got, BadClip):
            assert str(got) == str(expected)
            continue
        assert (decoded(got) == expected).all(), path.name
        same.append(path.name)
    assert len(same) >= 25
    assert unsuitable["bitmap.mp4"] == "yuv444p frames; DALI gets yuv420p only"
    assert {"test.avi", "h265_10bits.mp4", "bbaf2n.mpg", "invalid-bitstream.webm"} <= set(unsuitable)


def outcome(read: Callable[[], Any]) -> Any:
    """What `read` returns, or why it cannot."""
    try:
        return read()
    except (BadClip, Unsuitable) as error:
        return error


def everything_but_video(a: Batch, b: Batch) -> bool:
    tensors = ("audio", "text", "video_mask", "audio_mask", "text_mask", "label", "labels")
    lists = ("clips", "tried", "bad")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and all(
        getattr(a, name) == getattr(b, name) for name in lists
    )


def test_encoded_batches_are_those_of_the_pyav_path(corpus: Manifest) -> None:
    plain = training(corpus)
    encoded = EncodedClips(training(corpus), "cpu")
    kinds = set()
    for step in range(4):
        expected, got = plain[step], encoded[step]
        assert everything_but_video(got, expected)
        assert sorted(got.rows + got.decoded) == list(range(4))
        for place, row in enumerate(got.decoded):
            assert got.clips[row] == 6
            assert torch.equal(got.video[place], expected.video[row])
        assert got.notes == (
            ["DALI does not decode h264 on a CPU; python -m vatt.data.transcode changes it"] if got.decoded else []
        )
        kinds |= {("decoded", bool(got.decoded)), ("bad", bool(got.bad))}
        halves = [EncodedClips(training(corpus, slots=slots), "cpu")[step] for slots in (range(2), range(2, 4))]
        assert halves[0].clips + halves[1].clips == got.clips
        assert torch.equal(torch.cat([half.data for half in halves]), got.data)
    assert len(kinds) == 4


def test_asked_for_and_impossible_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_decoder("pyav", CPU)[0] == choose_decoder("auto", CPU)[0] == "pyav"
    assert choose_decoder("auto", CPU)[1] == (
        "decoder: PyAV on the CPU (DALI needs an NVIDIA GPU, and the device is cpu)"
    )
    with pytest.raises(ConfigError, match=r"--decoder dali is not possible: .*the device is cpu; --decoder pyav"):
        choose_decoder("dali", CPU)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match="no CUDA GPU here"):
        choose_decoder("dali", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dali, "COPIES_PACKETS", False)
    with pytest.raises(ConfigError, match=r"is older than 14\.2"):
        choose_decoder("dali", torch.device("cuda"))
    monkeypatch.setattr(dali, "COPIES_PACKETS", True)
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"cannot be imported.*pip install -e '\.\[dali\]'"):
        choose_decoder("dali", torch.device("cuda"))
    assert choose_decoder("auto", torch.device("cuda"))[0] == "pyav"


def test_trial_tells_other_pictures_and_other_codecs(
    corpus: Manifest, needs_dali: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "_missing", lambda device: None)
    assert choose_decoder("auto", CPU, training(corpus))[0] == "dali"
    h264 = Manifest(corpus.clips[6:], corpus.root, ())
    with pytest.raises(ConfigError, match="DALI does not decode h264"):
        choose_decoder("dali", CPU, training(h264))
    monkeypatch.setattr(dali, "finish_graph", lambda pipeline: 255 - finish_graph(pipeline))
    with pytest.raises(ConfigError, match=r"0\.mkv: its frames are \d+ levels of 255 from those that PyAV decodes"):
        choose_decoder("dali", CPU, training(corpus))


def run(size: int, inputs: dict[str, Sequence[np.ndarray]], recolour: bool = True) -> np.ndarray:
    pipeline = build_graph("cpu", rows=8, size=size, recolour=recolour)
    pipeline.build()
    rows = len(inputs["encoded"])
    start_graph(pipeline, {"rgb": [colour_matrix(2)] * rows} | inputs)
    return finish_graph(pipeline).numpy()


@pytest.mark.parametrize(("codec", "stored"), [("libvpx-vp9", 72), ("mjpeg", 160)])
def test_graph_augments_as_the_pyav_path_does(codec: str, stored: int, needs_dali: None, tmp_path: Path) -> None:
    """On the same decoded frames, shrunk or not, crop, scale jitter, flip, rotation and colours agree to one level."""
    path = write_video(tmp_path / "clip.mkv", codec, stored, stored, colourful(stored))
    full, size, rows = 72, 48, 8
    places = np.array([0, 2, 5, 7, 7, 29], np.int32)
    same: dict[str, Sequence[np.ndarray]] = {
        "encoded": [np.fromfile(path, np.uint8)] * rows,
        "frames": [places] * rows,
        "shrunk": [np.array([full, full], np.float32)] * rows,
    }
    whole = warp_matrix(VideoDraw(full, full, 0, 0, False, None), full, full, full)
    frames = run(full, same | {"matrix": [whole] * rows}, recolour=False)[0]
    assert (frames[3] == frames[4]).all()
    assert not (frames[0] == frames[1]).all()

    augment = AugmentConfig(colour_jitter=0.7)
    draws, matrices, expected = [], [], []
    for seed in range(rows):
        turn = ORIENTATIONS[seed % 8]
        upright = np.stack([turn.upright(frame) for frame in frames])
        draws.append(draw_video(full, full, size, augment, np.random.default_rng(seed)))
        matrices.append(warp_matrix(draws[-1], size, full, full, turn))
        expected.append(train_video(upright, size, augment, np.random.default_rng(seed)))
    assert {draw.mirror for draw in draws} == {True, False}
    assert {draw.colour is None for draw in draws} == {True, False}
    colours = [np.array(draw.colour or UNCHANGED, np.float32).reshape(4, 1, 1, 1, 1) for draw in draws]
    got = run(size, same | {"matrix": matrices, "colour": colours})
    apart = got.astype(int) - np.stack(expected)
    assert np.abs(apart).max() <= 1
    assert abs(apart.mean()) < 0.1  # cutting off instead of rounding would be 1/2


@pytest.mark.parametrize(("size", "bound"), [(160, 2), (48, 4)])
def test_decoding_and_shrinking_of_ramps(size: int, bound: int, needs_dali: None, tmp_path: Path) -> None:
    """Grey ramps, which every symmetric filter shrinks alike: what is left is rounding.

    Unshrunk: libswscale's conversion to RGB cuts fractions off (below 1), DALI's rounds (1/2), both are rounded once
    more after the augmentation: at most 2 between whole numbers. Shrunk: libswscale cuts luma off at 8 bits before that
    (below 255/219 in RGB), DALI rounds RGB before and after (1/2 each): 1.2 + 1 + 1/2 + 1/2 + the last rounding, 4.
    """
    y, x = np.mgrid[0:160, 0:240]
    path = write_video(
        tmp_path / "ramp.webm",
        "libvpx-vp9",
        240,
        160,
        lambda i: np.repeat(np.rint(20 + x * 0.5 + y * 0.4 + i).astype(np.uint8)[..., None], 3, 2),
        lossless="1",
    )
    model = replace(MODEL, video=replace(MODEL.video, size=size))
    data = replace(DATA, batch_size=2, augment=replace(PLAIN, scale_jitter=1.0, flip=True, scale_range=(1.0, 1.2)))
    clips = Manifest((Clip(0, path, "a"), Clip(1, path, "b")), tmp_path, ())
    plain = ClipDataset(clips, data, model, Tokenizer([]), seed=1)
    for step, batch in enumerate(make_dali_loader(plain, 0, 3, 0, 1, device=CPU)):
        assert (batch.video.int() - plain[step].video.int()).abs().max() <= bound


def test_fine_stripes_shrink_to_grey(needs_dali: None, tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 128, 255], np.uint8), 54)[None, :160, None].repeat(160, 0).repeat(3, 2)
    path = write_video(tmp_path / "stripes.mkv", "libvpx-vp9", 160, 160, lambda i: stripes, lossless="1")
    clips = Manifest((Clip(0, path, "a"),), tmp_path, ())
    plain = training(clips, replace(DATA, batch_size=1, augment=PLAIN))  # 160 pixels to 48
    (batch,) = make_dali_loader(plain, 0, 1, 0, 1, device=CPU)
    for video in (batch.video, plain[0].video):
        assert video[:, :, 2:-2, 2:-2].float().std() < 5  # a triangle 3.3 pixels wide leaves 1% of a wave of 3


def test_batches_in_order_whatever_runs_them(corpus: Manifest, needs_dali: None) -> None:
    plain = training(corpus, replace(DATA, augment=PLAIN))
    expected = [plain[step] for step in range(6)]
    first = list(make_dali_loader(plain, 0, 6, 0, 1, device=CPU, pipelines=3))
    assert len(first) == 6
    for got, wanted in zip(first, expected, strict=True):
        assert type(got) is Batch
        assert got.video.dtype == torch.uint8
        assert everything_but_video(got, wanted)
        for a, b in zip(got.video, wanted.video, strict=True):
            assert numbers(a.numpy()) == numbers(b.numpy())  # the same frames of the same clip
    resumed = list(make_dali_loader(plain, 3, 3, 1, 2, device=CPU, pipelines=1))
    halves = [training(corpus, replace(DATA, augment=PLAIN), slots) for slots in (range(2), range(2, 4))]
    ranks = [list(make_dali_loader(half, 0, 3, 0, 1, device=CPU)) for half in halves]
    for step in range(3):
        assert torch.equal(resumed[step].video, first[3 + step].video)
        assert everything_but_video(resumed[step], first[3 + step])
        assert torch.equal(torch.cat([rank[step].video for rank in ranks]), first[step].video)


def test_a_clip_that_ends_the_pipeline_spoils_no_other_batch(
    corpus: Manifest, needs_dali: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage inside of a packet, which no demuxer sees: Huffman tables at 0.4 s, so that over a second is missing."""
    data = corpus[2].path.read_bytes()
    frames = data.split(b"\xff\xd8\xff")
    frames[11] = frames[11].replace(b"\xff\xc4\x01\xa2", b"\xff\xc4\x01\xa2" + b"\xff" * 8, 1)[: len(frames[11])]
    path = corpus.root / "damaged.mkv"
    path.write_bytes(b"\xff\xd8\xff".join(frames))
    clips = Manifest((Clip(0, path, path.name), *corpus.clips[1:6]), corpus.root, ())
    plain = training(clips, replace(DATA, batch_size=2, augment=PLAIN))
    got = [list(make_dali_loader(plain, 0, 9, 0, 1, device=CPU, pipelines=pipelines)) for pipelines in (1, 3)]
    assert "DALI failed, so PyAV decodes this batch (" in capsys.readouterr().err
    outcomes = set()
    for step in range(9):
        expected = plain[step]
        outcomes.add(bool(expected.bad))
        for batch in (got[0][step], got[1][step]):
            assert everything_but_video(batch, expected)
            for a, b in zip(batch.video, expected.video, strict=True):
                assert numbers(a.numpy()) == numbers(b.numpy())
        assert torch.equal(got[0][step].video, got[1][step].video)
    assert outcomes == {True, False}


def test_dali_that_never_works_is_an_error(corpus: Manifest, needs_dali: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = EncodedClips.__getitem__

    def broken(self: EncodedClips, step: int) -> EncodedBatch:
        batch = honest(self, step)
        return replace(batch, data=torch.zeros_like(batch.data))

    monkeypatch.setattr(EncodedClips, "__getitem__", broken)
    with pytest.raises(DataError, match=r"each of the first 3 batches.*--decoder pyav"):
        list(make_dali_loader(training(corpus), 0, 9, 0, 1, device=CPU))


def test_the_gpu_graph_constructs_and_serialises(needs_dali: None) -> None:
    text = build_graph("gpu", rows=4, size=224, recolour=True).serialize()
    assert b"decoders__Video" in text
    assert b"mixed" in text
    assert b"WarpAffine" in text


def test_frames_are_shown_upright(tmp_path: Path) -> None:
    """The corners of the output, followed back into the stored frame, for each display rotation and mirror."""
    draw = VideoDraw(40, 60, 3, 5, False, None)  # upright 40 x 60, crop of 32 at row 3, column 5
    for turn in ORIENTATIONS:
        height, width = (40, 60) if not turn.transposed else (60, 40)  # stored
        stored = np.arange(40 * 60).reshape(height, width)
        marks = turn.upright(stored)
        assert marks.shape == (40, 60)
        assert turn.shown(width, height) == (60, 40)
        matrix = warp_matrix(draw, 32, width, height, turn)
        for x, y in ((0, 0), (31, 0), (7, 20)):
            column, row = np.floor(matrix @ [x + 0.5, y + 0.5, 1]).astype(int)
            assert stored[row, column] == marks[y + 3, x + 5]


FLAT = {  # colours that neither matrix clips, and saturated ones
    "kept": [(200, 150, 120), (90, 120, 160), (128, 128, 128), (60, 100, 70)],
    "clipped": [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)],
}


def write_flat(path: Path, colours: list[tuple[int, int, int]], colourspace: int) -> Path:
    """Four stripes of 64 pixels, VP9 in `colourspace` as libav numbers them, limited range, and tagged so."""
    pixels = np.repeat(np.array(colours, np.uint8)[None], 128, 0).repeat(64, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10, options={"crf": "4", "b": "0", "cpu-used": "8"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colourspace, 1
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=colourspace, dst_color_range=1)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_matrix_of_colours_undoes_a_wrong_one() -> None:
    """From the definitions: luma of BT.601 and BT.709, and differences of colours from it."""
    for space, (red, blue) in ((1, (0.2126, 0.0722)), (5, (0.299, 0.114)), (9, (0.2627, 0.0593))):
        rgb = np.array([0.7, 0.5, 0.4])
        y = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
        u, v = (rgb[2] - y) / (2 * (1 - blue)), (rgb[0] - y) / (2 * (1 - red))
        green = (y + 2 * 0.701 * v, y + 2 * 0.886 * u)  # red and blue as BT.601 has them
        wrong = np.array([green[0], (y - 0.299 * green[0] - 0.114 * green[1]) / 0.587, green[1]])
        assert colour_matrix(space) @ wrong == pytest.approx(rgb, abs=1e-6)
    assert (colour_matrix(2) == np.eye(3, dtype=np.float32)).all()


@pytest.mark.parametrize("colourspace", [1, 5])
def test_both_decoders_read_the_colours_that_a_file_is_tagged_with(
    colourspace: int, needs_dali: None, tmp_path: Path
) -> None:
    path = write_flat(tmp_path / "clip.webm", FLAT["kept"], colourspace)
    with opened(path, 30.0, ("video",)) as reader:
        packets = cut_packets(reader, 0.0, 10.0, 8, "cpu")
    whole = warp_matrix(VideoDraw(128, 256, 0, 0, False, None), 128, 256, 128)
    ours = decode_span(path, start=0.0, fps=10.0, frames=8, rate=RATE).video
    assert ours is not None
    got = run(
        128,
        {
            "encoded": [np.frombuffer(packets.data, np.uint8)],
            "frames": [packets.frames],
            "shrunk": [np.array([128, 256], np.float32)],
            "matrix": [whole],
            "rgb": [colour_matrix(packets.colourspace)],
        },
        recolour=False,
    )[0]
    assert np.abs(got[:, 40:90, [32, 96]].astype(int) - ours[:, 40:90, [32, 96]]).max() <= 3


def test_what_transcoding_writes_is_marked_and_read_alike(needs_dali: None, tmp_path: Path) -> None:
    """Saturated BT.709, which no matrix restores once it is clipped, is BT.601 after transcoding, for both decoders."""
    path = write_flat(tmp_path / "clip.webm", FLAT["clipped"], 1)
    made = encode_clip(Clip(0, path, path.name), tmp_path / "new", Encoding(codec="vp9", size=128), 60.0)
    new = tmp_path / made.name
    ours = decode_span(new, start=0.0, fps=10.0, frames=8, rate=RATE).video
    with opened(new, 30.0, ("video",)) as reader:
        packets = cut_packets(reader, 0.0, 10.0, 8, "cpu")
    assert packets.colourspace in (5, 6)
    assert ours is not None
    whole = warp_matrix(VideoDraw(128, 256, 0, 0, False, None), 128, 256, 128)
    got = run(
        128,
        {
            "encoded": [np.frombuffer(packets.data, np.uint8)],
            "frames": [packets.frames],
            "shrunk": [np.array([128, 256], np.float32)],
            "matrix": [whole],
        },
        recolour=False,
    )[0]
    assert np.abs(got[:, 40:90, [32, 96]].astype(int) - ours[:, 40:90, [32, 96]]).max() <= 3
    assert np.abs(ours[:, 64, 32::64].astype(int) - np.array(FLAT["clipped"])).max() <= 4


@pytest.mark.parametrize("width", [640, 455, 398, 394])
def test_white_stays_white_at_every_width(width: int, tmp_path: Path) -> None:
    for level in (255, 128):
        path = write_video(
            tmp_path / f"{level}.mp4",
            "libx264",
            640,
            360,
            lambda _, at=level: np.full((360, 640, 3), at, np.uint8),
            3,
            crf="1",
        )
        video = decode_span(path, start=0.0, fps=10.0, frames=1, rate=RATE, short_side=round(width * 360 / 640)).video
        assert video is not None
        assert abs(video.mean() - level) < 1
