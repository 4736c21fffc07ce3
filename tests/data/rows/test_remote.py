"""Files and shards behind http, from a server that stalls, cuts off, refuses and recovers: a bad clip at the worst."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.loader_corpus import same, training, words_of, write_corpus

from vatt.data.clip import ManifestError
from vatt.data.manifest import read_manifest, write_manifest
from vatt.data.shards import index, remote
from vatt.data.shards.index import open_clip
from vatt.data.shards.writing import write_shards

pytest.importorskip("aiohttp", reason="http through fsspec needs aiohttp")


class Server(ThreadingHTTPServer):
    """Serves `root`. `faults`: what happens to the next requests for a file: "stall", "cut" or a status."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.faults, self.asked = root, dict[str, list[str]](), Counter[str]()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults and body else ""
        if fault == "stall":
            time.sleep(3)
        path = self.server.root / name
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, size = path.read_bytes(), path.stat().st_size
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if asked[0]:
            first, last = int(asked[0]), min(int(asked[2] or size - 1), size - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            if fault == "cut":
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "SECONDS", 1.0)
    monkeypatch.setattr(remote, "BACK_OFF", 0.01)
    (tmp_path / "far").mkdir()
    server = Server(tmp_path / "far")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_corpus(tmp_path_factory.mktemp("corpus")).root)


def test_a_dead_connection_is_tried_again(server: Server) -> None:
    data = bytes(range(256)) * 40
    (server.root / "a.bin").write_bytes(data)
    for number, faults in enumerate((["stall"], ["cut"], ["503", "cut", "503"])):
        server.faults["a.bin"] = list(faults)
        address = f"{server.address}/a.bin"
        assert remote.read_bytes(address, 100 + number, 5000) == data[100 + number : 5100 + number]
        assert server.faults["a.bin"] == []
    server.faults["a.bin"] = ["503"] * 9
    with pytest.raises(OSError, match=r"503.* after 4 tries"):
        remote.read_bytes(address, 0, 10)
    assert len(server.faults["a.bin"]) == 5
    with pytest.raises(FileNotFoundError):
        remote.fetched(f"{server.address}/nothing.mp4")


def test_files_of_a_manifest_are_fetched_once_and_bad_ones_replaced(
    server: Server, clips: Path, tmp_path: Path
) -> None:
    for file in clips.glob("[0-9].mp4"):
        shutil.copy(file, server.root)
    lines = (clips / "manifest.csv").read_text().splitlines()[:11]
    (tmp_path / "near.csv").write_text("\n".join(line.replace("mp4", "mp4", 1) for line in lines))
    (tmp_path / "far.csv").write_text("\n".join([lines[0], *(f"{server.address}/{line}" for line in lines[1:])]))
    for file in clips.glob("[0-9].mp4"):
        shutil.copy(file, tmp_path)
    near, far = read_manifest(tmp_path / "near.csv"), read_manifest(tmp_path / "far.csv")
    words = words_of(near)
    server.faults["3.mp4"] = ["cut", "503"]
    one, other = training(near, words), training(far, words)
    assert all(same(one[step], other[step]) for step in range(3))
    asked = server.asked.copy()
    other = training(far, words)
    other[0]
    assert server.asked == asked  # what was fetched is kept
    gone = training(far, words, seed=3)
    shutil.rmtree(tmp_path / "cache")
    server.faults = {f"{i}.mp4": ["503"] * 99 for i in range(5)}
    batches = [gone[step] for step in range(3)]
    bad = [reason for batch in batches for _, reason in batch.bad]
    assert bad
    assert all("503" in reason for reason in bad)
    assert all(len(batch.clips) == 4 for batch in batches)
    write_manifest(tmp_path / "again.csv", far)
    assert [clip.path for clip in read_manifest(tmp_path / "again.csv")] == [clip.path for clip in far]


def test_shards_are_read_where_they_are(server: Server, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = read_manifest(clips / "manifest.csv")
    write_shards(local[:10], server.root, 5)
    source = f"stream+{server.address}/" + "{000000..000001}.tar"
    server.faults["000000.tar"] = ["503", "cut"]
    far = read_manifest(source)
    near = read_manifest(server.root)
    assert [(clip.captions, clip.label) for clip in far] == [(clip.captions, clip.label) for clip in near]
    words = words_of(local)
    assert all(same(training(near, words)[step], training(far, words)[step]) for step in range(2))
    index.index_of.cache_clear()
    asked = server.asked.copy()
    assert len(read_manifest(source)) == 10
    texts = 10  # of each clip
    assert sum((server.asked - asked).values()) <= 2 * texts  # no listing: that is kept
    assert sum(file.stat().st_size for file in remote.cache_root().rglob("*")) < 20_000  # and no shard


def test_the_cache_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATT_REMOTE_GB", "0.000005")
    for i in range(4):
        (server.root / f"{i}.mp4").write_bytes(b"x" * 2000)
        open_clip(Path(f"{server.address}/{i}.mp4"))
    kept = remote.cache_root() / "remote"
    assert len(list(kept.iterdir())) == 4  # all in use a moment ago
    monkeypatch.setattr(remote, "RESTING", -1.0)
    remote.fetched(f"{server.address}/0.mp4")
    (server.root / "5.mp4").write_bytes(b"x" * 2000)
    remote.fetched(f"{server.address}/5.mp4")
    assert len(list(kept.iterdir())) == 2


def test_addresses_are_for_manifests_that_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_text("path\nhttp://127.0.0.1:9/a.mp4\nfile:///etc/passwd\n")
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest[0].path == Path("http://127.0.0.1:9/a.mp4")
    assert manifest[1].path == tmp_path / "file:/etc/passwd"  # a name like any other
    monkeypatch.setenv("VATT_ROOTS", "/")
    with pytest.raises(ManifestError, match="is an address"):
        read_manifest(tmp_path / "m.csv")
