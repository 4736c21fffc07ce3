"""The built-in corpus: small clips of moving coloured shapes, with sound and captions, written as real mp4 files.

A clip has three attributes: shape, colour and motion. Each of the three modalities alone tells all of them:

- picture: a coloured shape that moves, on a dark background;
- sound: three notes in turn, one per attribute, each attribute in a frequency band of its own;
- captions: several sentences, each naming shape, colour and motion in other words and another order.

What must not matter varies at random: position, size, tilt, speed, phase, brightness, background, loudness, balance,
detuning and noise. Combinations of attributes in the test split never occur in the train split, though every value
and every pair of values does (in a corpus of the default size), so retrieval on the test split asks for
generalisation, not for memory.

The files go through the same manifest and decoder as anyone's clips. Left and right are words of this corpus, so
training on it must not mirror frames, and colours are too, so it must not rotate hues.

Run `python -m vatt.data.synthetic --help` to write a corpus to a folder of your choice.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, UsageError
from ..runtime.cli import exit_code
from .clip import Clip, ManifestError
from .encoders import REPEATABLE
from .manifest import write_manifest

log = logging.getLogger(__name__)

# Part of the cache folder's name: raise it with every change of the bytes written; `write_clip` still writes format 1.
FORMAT = 2
DRAWS = 1  # of the recipe's random numbers, so of what clips show: raise it with every change of the draws below

SIZE = 80  # pixels, height and width
FPS = 10
FRAMES = 20
RATE = 48_000  # Hz, mono
SAMPLES = RATE * FRAMES // FPS
CAPTIONS = 5  # per clip
MOST_TEST_CLIPS = 100

# Value -> the words captions use for it.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
MOTIONS: dict[str, tuple[str, ...]] = {
    "left": ("moves left", "drifts to the left", "goes left"),
    "right": ("moves right", "drifts to the right", "goes right"),
    "up": ("moves up", "rises", "goes upwards"),
    "down": ("moves down", "sinks", "goes downwards"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes tiny"),
    "orbit": ("orbits", "runs in a loop", "goes round and round"),
    "blink": ("blinks", "flashes", "goes on and off"),
}
# Value -> RGB. Far apart in hue or brightness, since 4:2:0 video keeps a quarter of the colour samples.
COLOURS = {
    "red": (220, 20, 20),
    "orange": (255, 130, 0),
    "yellow": (240, 230, 30),
    "green": (20, 180, 30),
    "cyan": (30, 220, 230),
    "blue": (40, 60, 255),
    "pink": (255, 60, 210),
    "white": (245, 245, 245),
}
TEMPLATES = (
    "a {colour} {shape} {motion}",
    "the {shape} is {colour} and {motion}",
    "look at the {colour} {shape} it {motion}",
    "a {shape} that {motion} and is {colour}",
    "something {colour} {motion} it is a {shape}",
    "painted {colour} a {shape} {motion}",
    "the thing that {motion} is a {colour} {shape}",
)


def _tones(first: int, count: int) -> tuple[float, ...]:
    # A patch of 128 samples at 8 kHz resolves 62.5 Hz, so two tones two such bins apart are orthogonal within it. The
    # 0.3 turns a tone's phase by 0.3 periods from patch to patch: a whole number of bins would show every patch of a
    # clip the same phase, and a tone caught near its zero crossing would be invisible to a fixed filter.
    return tuple(62.5 * (first + 2 * k + 0.3) for k in range(count))


# Hz; 250 Hz apart from band to band, and below 3.5 kHz so that they survive resampling to 8 kHz.
SHAPE_TONES = dict(zip(SHAPES, _tones(9, 5), strict=True))
COLOUR_TONES = dict(zip(COLOURS, _tones(21, 8), strict=True))
MOTION_TONES = dict(zip(MOTIONS, _tones(39, 8), strict=True))


@dataclass(frozen=True)
class SyntheticClip:
    """What one clip shows. `index` is its number in the corpus and, with the seed, fixes all its random variation."""

    index: int
    shape: str
    colour: str
    motion: str
    split: str

    @property
    def path(self) -> str:
        return f"clips/{self.index:05d}.mp4"


def plan(clips: int, seed: int) -> list[SyntheticClip]:
    """All recipes of a corpus: train clips, then one test clip for each held-out combination (an eighth, at most 100).

    Held-out combinations are spread evenly over values and pairs of values. Train clips cycle through the others.
    """
    if clips < 2:
        raise ConfigError(f"the built-in corpus needs at least 2 clips (one to train on, one to test), got {clips}")
    rng = np.random.default_rng((DRAWS, seed))
    combinations = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    rng.shuffle(combinations)
    test: list[tuple[str, str, str]] = []
    counts: Counter[tuple[str, ...]] = Counter()
    for _ in range(max(1, min(MOST_TEST_CLIPS, clips // 8))):
        chosen = min((c for c in combinations if c not in test), key=lambda c: _crowding(c, counts))
        test.append(chosen)
        counts.update(_parts(chosen))
    train = [c for c in combinations if c not in test]
    names = [(*train[i % len(train)], "train") for i in range(clips - len(test))] + [(*c, "test") for c in test]
    return [SyntheticClip(index, *name) for index, name in enumerate(names)]


def _parts(combination: tuple[str, str, str]) -> Iterator[tuple[str, ...]]:
    """The single values and the pairs of values in a combination."""
    for size in (1, 2):
        yield from itertools.combinations(combination, size)


def _crowding(combination: tuple[str, str, str], counts: Counter[tuple[str, ...]]) -> float:
    # Each count is relative to how often a value or pair would occur in a perfectly even spread.
    values = (len(SHAPES), len(COLOURS), len(MOTIONS))
    weights = [*values, *(a * b for a, b in itertools.combinations(values, 2))]
    return sum((counts[part] * w) ** 2 for part, w in zip(_parts(combination), weights, strict=True))


def captions(recipe: SyntheticClip, seed: int) -> list[str]:
    """`CAPTIONS` different sentences of at most 16 words; each names shape, colour and motion."""
    rng = _rng(recipe, seed, 0)
    return [
        TEMPLATES[i].format(
            shape=rng.choice(SHAPES[recipe.shape]), colour=recipe.colour, motion=rng.choice(MOTIONS[recipe.motion])
        )
        for i in rng.permutation(len(TEMPLATES))[:CAPTIONS]
    ]


def render_video(recipe: SyntheticClip, seed: int) -> np.ndarray:
    """Frames [FRAMES, SIZE, SIZE, 3], uint8 RGB.

    Any 1.6 s show the motion, and the shape is at least partly inside any crop of two thirds of the frame: the
    smallest that a scale jitter of 0.8-1.2 leaves of a square frame.
    """
    rng = _rng(recipe, seed, 1)
    colour = np.array(COLOURS[recipe.colour]) * rng.uniform(0.88, 1.0)
    grid = np.arange(SIZE) + 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    slope = rng.uniform(-0.2, 0.2, 2)
    shade = rng.uniform(25, 70) + slope[0] * (x - SIZE / 2) + slope[1] * (y - SIZE / 2)
    background = np.repeat(shade[..., None], 3, axis=2) + rng.normal(0, 4, (SIZE, SIZE, 3))
    tilt = rng.uniform(-0.2, 0.2)
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
    for t, (cx, cy, radius, visible) in enumerate(_trajectory(recipe.motion, rng)):
        u = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)
        v = (y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)
        cover = np.clip(0.5 - _distance(recipe.shape, u, v, radius), 0, 1)[..., None] * visible
        frames[t] = np.clip(background + cover * (colour - background), 0, 255)
    return frames


def _trajectory(motion: str, rng: np.random.Generator) -> Iterator[tuple[float, float, float, bool]]:
    """Centre x and y, radius (pixels) and visibility for each frame."""
    cx, cy = SIZE / 2 + rng.uniform(-5, 5, 2)
    radius = rng.uniform(13, 17)
    travel = rng.uniform(36, 42)
    small, large = rng.uniform(6, 8), rng.uniform(22, 26)
    phase, turns = rng.uniform(), rng.uniform(1.2, 1.6) * rng.choice([-1, 1])
    blinks = rng.uniform(2.3, 3.2)
    for t in range(FRAMES):
        share = t / (FRAMES - 1)
        step = (share - 0.5) * travel
        if motion in ("left", "right"):
            yield SIZE / 2 + (step if motion == "right" else -step), cy, radius, True
        elif motion in ("up", "down"):
            yield cx, SIZE / 2 + (step if motion == "down" else -step), radius, True
        elif motion in ("grow", "shrink"):
            yield cx, cy, small + (large - small) * (share if motion == "grow" else 1 - share), True
        elif motion == "orbit":
            angle = 2 * np.pi * (phase + turns * share)
            yield SIZE / 2 + 16 * np.cos(angle), SIZE / 2 + 16 * np.sin(angle), radius, True
        else:
            yield cx, cy, radius, bool((phase + blinks * share) % 1 < 0.5)


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels (negative inside) from the outline of a shape around the origin, of similar areas."""
    if shape == "circle":
        return np.hypot(u, v) - radius
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.9 * radius
    if shape == "triangle":
        return np.maximum(abs(u) * 3**0.5 / 2 - v / 2, v) - 0.7 * radius
    if shape == "cross":
        long, wide = 1.15 * radius, 0.38 * radius
        return np.minimum(np.maximum(abs(u) - long, abs(v) - wide), np.maximum(abs(u) - wide, abs(v) - long))
    return abs(np.hypot(u, v) - 0.85 * radius) - 0.24 * radius


def render_audio(recipe: SyntheticClip, seed: int) -> np.ndarray:
    """Mono waveform [SAMPLES] at `RATE` Hz, float32 in [-1, 1]: three notes that take turns, one for each attribute.

    A note lasts 70-100 ms, so 1.6 s hold each at least five times. One at a time is learned far sooner than a chord:
    each is three times as loud, and a patch rarely holds two.
    """
    rng = _rng(recipe, seed, 2)
    time = np.arange(SAMPLES) / RATE
    length = rng.uniform(0.07, 0.1)
    turn, since = np.divmod(time + rng.uniform(0, 3 * length), length)
    fade = np.clip(np.minimum(since, length - since) / 0.004, 0, 1)
    wave = rng.normal(0, 0.01, SAMPLES)
    for i, tone in enumerate((SHAPE_TONES[recipe.shape], COLOUR_TONES[recipe.colour], MOTION_TONES[recipe.motion])):
        hertz = tone + rng.uniform(-4, 4)
        gain = (turn % 3 == i) * fade * rng.uniform(0.8, 1.2)
        wave += gain * np.sin(2 * np.pi * (hertz * time + rng.uniform()))
    return (wave * rng.uniform(0.6, 0.95) / np.max(abs(wave))).astype(np.float32)


def _rng(recipe: SyntheticClip, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((DRAWS, seed, recipe.index, stream))


def write_clip(path: Path, frames: np.ndarray, wave: np.ndarray, version: int = FORMAT) -> None:
    """Encode frames [T, H, W, 3] (uint8 RGB, `FPS`) and a mono waveform [S] (float32, `RATE`): H.264 + AAC in mp4.

    The bytes of version 2 are a function of the arrays and of the FFmpeg release on every x86-64 CPU with AVX2;
    elsewhere AAC and the conversion to YUV may round otherwise. Those of version 1 were not so on CPUs with AVX-512.
    """
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # One encoder thread a clip: clips are encoded side by side, and the bytes do not depend on the core count.
        options: dict[str, object] = {"crf": "23", "preset": "veryfast", "g": str(FPS), "threads": "1"}
        video.options = options if version == 1 else options | REPEATABLE
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        audio.bit_rate = 64_000
        audio.options = {"aac_coder": "fast"}  # the default coder takes four fifths of the whole time
        if version > 1:  # 16 bits, as the sine's last bit is the CPU's
            wave = (np.round(wave * 32767.0) / 32768.0).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(sound))
        for t, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = t, Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def cache_folder(clips: int, seed: int, version: int = FORMAT) -> Path:
    """Where a corpus lies by default: under $VATT_CACHE, else $XDG_CACHE_HOME/vatt, else ~/.cache/vatt."""
    root = os.environ.get("VATT_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vatt"
    return base / f"shapes-v{version}-{clips}clips-seed{seed}"


def build_corpus(
    folder: Path | None = None, clips: int = 800, seed: int = 0, progress: bool = True, version: int = FORMAT
) -> Path:
    """Writes the corpus unless it is there already. Returns the path of its manifest.csv.

    folder: where manifest.csv and clips/ go; None is `cache_folder(clips, seed)`.
    clips: train and test clips together. progress: show a bar on stderr.

    A folder appears under its name only when it is complete. Processes that want the same folder wait for the first
    one. Raises FileExistsError when the folder holds anything else, also a corpus of other parameters; OSError when
    it cannot be written.
    """
    recipes = plan(clips, seed)
    folder = (cache_folder(clips, seed, version) if folder is None else Path(folder)).expanduser().absolute()
    stamp = {"format": version, "clips": clips, "seed": seed}
    if not _finished(folder, stamp):
        with _locked(folder, progress):
            if not _finished(folder, stamp):
                _write_corpus(folder, recipes, stamp, progress)
    return folder / "manifest.csv"


def corpus_of(version: int, clips: int, seed: int = 0) -> Path:
    """Return the manifest of the built-in corpus in format `version`, written first if it is the present format.

    Raises:
        ManifestError: an earlier format that is not there. It is not written without a word, as CPUs with AVX-512 write
            other bytes each time.
    """
    stamp = {"format": version, "clips": clips, "seed": seed}
    if version == FORMAT or _finished(cache_folder(clips, seed, version), stamp):
        return build_corpus(clips=clips, seed=seed, version=version)
    raise ManifestError(
        f"this run was made with the built-in corpus of format {version}, which is not in "
        f"{cache_folder(clips, seed, version)}; copy it there from where the run began, or make it: "
        f"python -m vatt.data.synthetic --clips {clips} --seed {seed} --format {version}"
    )


def _finished(folder: Path, stamp: dict[str, int]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        content = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = "something that is not a built-in corpus"
    if content != stamp:
        raise FileExistsError(f"{folder} holds {content}, wanted {stamp}; name another folder or delete this one")
    return True


@contextlib.contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """Holds the lock of `folder`. The system drops it when its holder dies, so a killed process blocks nobody."""
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(folder.with_name(f".{folder.name}.lock").open("w"))
        except OSError as error:
            raise OSError(
                f"the built-in corpus cannot be written ({error}); set VATT_CACHE to another folder"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                log.warning("waiting for another process that is writing %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_corpus(folder: Path, recipes: list[SyntheticClip], stamp: dict[str, int], progress: bool) -> None:
    """Writes everything to a folder beside, then gives that its name. To be called with the lock held."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():  # left by a process that was killed
        shutil.rmtree(partial)
    (partial / "clips").mkdir(parents=True)
    seed = stamp["seed"]

    def write(recipe: SyntheticClip) -> Clip:
        path = partial / recipe.path
        write_clip(path, render_video(recipe, seed), render_audio(recipe, seed), stamp["format"])
        sentences = tuple(captions(recipe, seed))
        return Clip(recipe.index, path, recipe.path, captions=sentences, label=recipe.shape, split=recipe.split)

    # Threads are enough, as the encoders and most of numpy release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(tqdm(pool.map(write, recipes), "built-in corpus", len(recipes), unit="clip", disable=not progress))
    write_manifest(partial / "manifest.csv", rows)
    (partial / "corpus.json").write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    partial.rename(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.data.synthetic",
        description="Write the built-in corpus: 2 s mp4 clips (H.264 + AAC) of coloured shapes that move, with tones "
        "and captions that each tell shape, colour and motion. The result is an ordinary manifest folder: pass it to "
        "`python -m vatt.train --data DIR/manifest.csv`.",
    )
    parser.add_argument("--out", type=Path, help="folder to create (default: a cache folder, see VATT_CACHE)")
    parser.add_argument("--clips", type=int, default=800, help="train and test clips together (default: 800)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    parser.add_argument(
        "--format",
        type=int,
        choices=range(1, FORMAT + 1),
        default=FORMAT,
        help=f"of the files, an earlier one for a run that began with it (default: {FORMAT})",
    )
    arguments = parser.parse_args(argv)

    def action() -> None:
        try:
            print(build_corpus(arguments.out, arguments.clips, arguments.seed, version=arguments.format))
        except FileExistsError as error:
            raise UsageError(str(error)) from error

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
