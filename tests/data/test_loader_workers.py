"""Worker processes: how many there are changes no batch; those that hang, die or lose their parent are dealt with."""

import gc
import multiprocessing.forkserver
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.loader_corpus import DATA, GOOD, MODEL, good, same, training, words_of, write_corpus
from helpers.processes import begin, environment, wait_until

from vatt.data import loader
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.base import Sample
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.training import ClipDataset
from vatt.data.decoding import container
from vatt.data.decoding.watchdog import Watch
from vatt.data.loader import make_loader
from vatt.data.tokenizer import Tokenizer
from vatt.data.workers import fork_server
from vatt.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(corpus: Manifest) -> Tokenizer:
    return words_of(corpus)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_restarts_change_nothing(corpus: Manifest, tokenizer: Tokenizer, workers: int) -> None:
    wanted = [training(corpus, tokenizer)[step] for step in range(7)]
    assert any(batch.bad for batch in wanted)
    start = 0 if workers == 1 else 3
    got = list(make_loader(training(corpus, tokenizer), start, 7 - start, workers, prefetch=2))
    assert len(got) == 7 - start
    assert all(same(a, b) for a, b in zip(got, wanted[start:], strict=True))
    alone = list(make_loader(training(corpus, tokenizer), 5, 2, 0))
    assert all(same(a, b) for a, b in zip(alone, wanted[5:], strict=True))


def test_nothing_but_bad_clips(corpus: Manifest, tokenizer: Tokenizer) -> None:
    bad = Manifest(corpus.clips[GOOD:], corpus.root, corpus.labels)
    for workers in (0, 1):
        with pytest.raises(DataError, match="32 clips in a row could not be used"):
            next(make_loader(training(bad, tokenizer), 0, 1, workers))
    with pytest.raises(DataError, match="no clips"):
        training(corpus.split("validation"), tokenizer)


def test_a_stuck_clip_is_cut_off_and_replaced(
    corpus: Manifest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, now = container.Reader.packets, 0.0

    def slow(self: container.Reader, stream: object) -> object:
        nonlocal now
        for packet in honest(self, stream):  # type: ignore[arg-type]
            if self.path.name == "5.mp4":
                now += 0.1
            yield packet

    monkeypatch.setattr(container.Reader, "packets", slow)
    monkeypatch.setattr(container, "time", SimpleNamespace(monotonic=lambda: now))
    dataset = training(good(corpus), tokenizer, replace(DATA, decode_seconds=0.5))
    step = next(step for step in range(9) if 5 in [dataset.planned(step, slot) for slot in range(4)])
    batch = dataset[step]
    assert batch.bad == [(5, "took longer than 0.5 s")]
    assert 5 not in batch.clips
    assert len(batch.clips) == 4


class Hanging(ClipDataset):
    """A decoder that does not come back from clip 5, whatever its deadline is."""

    def _read(self, clip: Clip, rng: np.random.Generator) -> Sample:
        with self.watch.decoding(clip):
            if clip.index == 5:
                time.sleep(600)
        return super()._read(clip, rng)


def test_a_decoder_that_hangs_is_ended_with_its_worker(
    corpus: Manifest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.5)
    dataset = Hanging(good(corpus), DATA, MODEL, tokenizer, 7)
    dataset.watch.limit = 2.0
    batches = list(make_loader(dataset, 0, 8, 2))
    assert [index for batch in batches for index, _ in batch.bad].count(5) >= 2
    assert {reason for batch in batches for _, reason in batch.bad} == {"its decoder hung for 2 s and was ended"}
    fresh = Hanging(good(corpus), DATA, MODEL, tokenizer, 7)
    fresh.watch.stuck = dataset.watch.stuck  # known from the start
    assert all(same(batch, fresh[step]) for step, batch in enumerate(batches))


class Killed:
    """A batch source whose process dies, as one does that runs out of memory."""

    longest_seconds = 60.0
    watch = Watch(60.0)

    def __getitem__(self, index: int) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Stuck(Killed):
    longest_seconds = 1.0

    def __getitem__(self, index: int) -> Batch:
        time.sleep(600)
        raise AssertionError


@pytest.mark.parametrize("source", [Killed(), Stuck()])
def test_dead_and_stuck_workers_are_an_error(source: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"a data worker stopped.*data\.workers=0"):
        next(make_loader(source, 0, 2, 1))


class Slow(Killed):
    """Writes its process id to the file `folder`/pid, then works for ever."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getitem__(self, index: int) -> Batch:
        (Path(self.folder) / "part").write_text(str(os.getpid()))
        os.rename(Path(self.folder) / "part", Path(self.folder) / "pid")
        time.sleep(600)
        raise AssertionError


class Failing(Killed):
    """`how`: what goes wrong in a worker; after 30 s without a word a test would say that it hangs."""

    longest_seconds = 30.0

    def __init__(self, how: str) -> None:
        self.how = how

    def __getitem__(self, index: int) -> Batch:
        if self.how == "memory":
            raise MemoryError
        if self.how == "disk":
            raise OSError(28, "No space left on device", "/somewhere/file")
        if self.how == "unpicklable":
            return lambda: None  # type: ignore[return-value]
        if self.how == "exception":

            class Unknown(Exception):
                pass

            raise Unknown("a fault of ours")
        sys.exit(3)


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("memory", DataError, "not enough memory"),
        ("disk", DataError, r"No space left on device: '/somewhere/file'"),
        ("exit", DataError, r"a data worker stopped \(exit code 3\)"),
        ("unpicklable", RuntimeError, "pickle|local object"),  # Python 3.13 says the second
        ("exception", RuntimeError, "Unknown: a fault of ours"),
    ],
)
def test_whatever_goes_wrong_in_a_worker_is_heard_of(how: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        next(make_loader(Failing(how), 0, 2, 1))


class Cramped(ClipDataset):
    """No file, and so no shared memory, may be larger than a kilobyte."""

    def __getitem__(self, step: int) -> Batch:
        batch = super().__getitem__(step)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return batch


def test_without_shared_memory_batches_come_all_the_same(
    corpus: Manifest, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    cramped = Cramped(good(corpus), DATA, MODEL, tokenizer, 7)
    batches = list(make_loader(cramped, 0, 5, 2))
    wanted = ClipDataset(good(corpus), DATA, MODEL, tokenizer, 7)
    assert all(same(batch, wanted[step]) for step, batch in enumerate(batches))
    assert caplog.text.count("note: no shared memory for batches") == 1


def test_a_batch_belongs_to_whoever_received_it(corpus: Manifest, tokenizer: Tokenizer) -> None:
    """It is not overwritten by later ones, may be changed, and goes back as soon as nobody holds it."""
    dataset = ClipDataset(good(corpus), DATA, MODEL, tokenizer, 7)
    descriptors = len(os.listdir("/proc/self/fd"))
    batches = list(make_loader(dataset, 0, 6, 2))
    batches[0].video.zero_()
    assert all(same(batch, dataset[step]) for step, batch in list(enumerate(batches))[1:])
    mapped = Path("/proc/self/maps").read_text().count("memfd:vatt")
    assert mapped >= 6
    del batches
    gc.collect()
    assert Path("/proc/self/maps").read_text().count("memfd:vatt") <= mapped - 6
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 3  # those of the fork server


@pytest.mark.parametrize("alive", [True, False])
def test_a_batch_may_take_as_long_as_its_clips_need(alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is how long ago its worker began or ended a clip, by a clock that makes ten seconds of a look."""
    looks = iter([False] * 100 + [True])
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(loader, "time", clock)

    def ready(seconds: float) -> bool:
        clock.now += 10.0
        return next(looks)

    watch = SimpleNamespace(silence=lambda worker: 5.0 if alive else clock.now, end_stuck=lambda: False)
    source = SimpleNamespace(watch=watch, longest_seconds=60.0)
    pool = SimpleNamespace(ready=ready, due=0, take=lambda: "batch")
    if alive:
        assert loader._next(source, pool, bool) == "batch"  # type: ignore[arg-type, comparison-overlap]
        assert clock.now > 10 * source.longest_seconds
    else:
        with pytest.raises(DataError, match="done nothing for 70 s"):
            loader._next(source, pool, bool)  # type: ignore[arg-type]


def test_a_wait_can_be_interrupted(tmp_path: Path) -> None:
    batches = make_loader(Slow(str(tmp_path)), 0, 1, 1, 4, lambda: (tmp_path / "pid").exists())
    with pytest.raises(loader.Interrupted):
        next(batches)
    worker = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_too_few_descriptors_are_one_sentence(corpus: Manifest, tokenizer: Tokenizer) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        with pytest.raises(DataError, match=r"8 data workers cannot be started .*Too many open files.*ulimit"):
            next(make_loader(training(corpus, tokenizer), 0, 1, 8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Orphaned(ClipDataset):
    """Kills the process that started it, the fork server, once."""

    def __getitem__(self, step: int) -> Batch:
        mark = self.clips.root / "killed"
        if step == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getppid(), signal.SIGKILL)
        return super().__getitem__(step)


def test_a_long_folder_for_temporary_files_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a socket has 107 bytes at most, and that of the fork server lies below TMPDIR."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.process.current_process()._config, "tempdir", raising=False)
    fork_server("json")
    assert tempfile.gettempdir() == str(folder)  # all else stays where it was asked for
    server = multiprocessing.forkserver.ForkServer()
    server.ensure_running()
    os.close(server._forkserver_alive_fd)  # which ends it
    os.waitpid(server._forkserver_pid, 0)


def test_a_killed_fork_server_costs_nothing(corpus: Manifest, tokenizer: Tokenizer, tmp_path: Path) -> None:
    clips = replace(good(corpus), root=tmp_path)
    batches = list(make_loader(Orphaned(clips, DATA, MODEL, tokenizer, 7), 0, 5, 2))
    assert (tmp_path / "killed").exists()
    assert all(same(batch, training(good(corpus), tokenizer)[step]) for step, batch in enumerate(batches))


def test_workers_end_with_a_killed_main_process(tmp_path: Path) -> None:
    code = (
        "from test_loader_workers import Slow\nfrom vatt.data.loader import make_loader\n"
        f"if __name__ == '__main__':\n    next(make_loader(Slow({str(tmp_path)!r}), 0, 1, 1))\n"
    )
    (tmp_path / "main.py").write_text(code)
    path = os.pathsep.join(map(str, [Path(__file__).parent, *Path(__file__).parents[1:3]]))
    process = begin([sys.executable, str(tmp_path / "main.py")], env=environment(PYTHONPATH=path))
    wait_until(process, (tmp_path / "pid").exists)
    worker = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    while Path(f"/proc/{worker}").exists():  # for ever, if it does not end
        time.sleep(0.05)
