"""One owner for what a command writes: who comes second hears who it is, and what a dead one left is taken over."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vatt.runtime import lock
from vatt.runtime.lock import OwnedError, Owner, is_local, owned, this_process

HOLD = """
import sys, time
from pathlib import Path
from vatt.runtime.lock import owned
with owned(Path(sys.argv[1]), folder=True):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes a lock file look as if a process of another machine had written it."""

    def leave(path: Path) -> Owner:
        owner = this_process()._replace(
            pid=4242, host="node7", boot="another", began="1", command="python -m vatt.train"
        )
        path.write_text(json.dumps(owner._asdict()))
        return owner

    return leave


def test_the_second_one_hears_who_the_first_is_and_since_when(tmp_path):
    out = tmp_path / "run"
    with owned(out, folder=True), pytest.raises(OwnedError) as refused, owned(out, folder=True):
        pass
    said = str(refused.value)
    assert said.startswith(f"{out} is being written by process {os.getpid()} on ")
    assert " since 2" in said
    assert "choose another --out" in said
    with owned(out, folder=True):
        pass  # free again


def test_of_a_killed_process_the_lock_is_taken_over(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OwnedError, match=f"process {process.pid} on "), owned(out, folder=True):
            pass
        (out / f".result.json.{process.pid}.tmp").write_text("half")
        (out / "notes.tmp").write_text("the user's")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (out / ".lock").exists()
    with owned(out, folder=True):
        assert sorted(path.name for path in out.iterdir()) == [".lock", "notes.tmp"]
    assert sorted(path.name for path in out.iterdir()) == ["notes.tmp"]


@pytest.mark.parametrize("folder", [True, False])
def test_nothing_is_left_behind(folder, tmp_path):
    out = tmp_path / "a" / "b"
    with owned(out, folder=folder):
        assert list((tmp_path / "a").rglob(".*lock"))
    assert not list(tmp_path.iterdir())
    with owned(out, folder=folder):
        (out / "file" if folder else out).touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_new_folder_is_claimed_by_making_it(tmp_path):
    out = tmp_path / "run"
    with owned(out, folder=True, new=True), pytest.raises(FileExistsError), owned(out, folder=True, new=True):
        pass


def test_force_takes_it_and_the_first_one_leaves_the_new_lock_alone(tmp_path, caplog):
    with owned(tmp_path, folder=True):
        second = owned(tmp_path, folder=True, force=True)
        second.__enter__()
        assert "as --force says" in caplog.text
    with pytest.raises(OwnedError), owned(tmp_path, folder=True):
        pass
    second.__exit__(None, None, None)
    with owned(tmp_path, folder=True):
        pass


@pytest.mark.parametrize("local", [True, False])
def test_an_owner_on_another_machine_is_gone_only_where_that_can_be_known(
    local, tmp_path, elsewhere, monkeypatch, caplog
):
    monkeypatch.setattr(lock, "is_local", lambda path: local)
    elsewhere(tmp_path / ".lock")
    if local:
        with owned(tmp_path, folder=True):
            return
    said = r"process 4242 on node7 since .*cannot be known.*--force"
    with pytest.raises(OwnedError, match=said), owned(tmp_path, folder=True):
        pass
    with owned(tmp_path, folder=True, force=True):
        assert "node7" in caplog.text
    assert not list(tmp_path.iterdir())


def test_without_locks_of_the_system_the_process_is_looked_for(tmp_path, elsewhere, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    first = owned(tmp_path, folder=True)
    with first, pytest.raises(OwnedError, match="is being written by"), owned(tmp_path, folder=True):
        pass
    gone = subprocess.Popen(["true"])
    gone.wait()
    for other in (this_process()._replace(pid=gone.pid), this_process()._replace(began="0")):
        (tmp_path / ".lock").write_text(json.dumps(other._asdict()))
        with owned(tmp_path, folder=True):
            pass
    elsewhere(tmp_path / ".lock")
    with pytest.raises(OwnedError, match="cannot be known"), owned(tmp_path, folder=True):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"pid": 1}', "[" * 100_000, "\0" * 100])
def test_a_lock_file_with_something_else_in_it_is_nobody_who_could_be_asked(text, tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text(text)
    with owned(tmp_path, folder=True):  # on this machine's disk nobody holds it
        pass
    monkeypatch.setattr(lock, "is_local", lambda path: False)
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(OwnedError, match="not on record"), owned(tmp_path, folder=True):
        pass


def test_which_file_systems_are_local(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 0:1 / / rw - ext4 /dev/sda rw\n"
        "22 21 0:2 / /shared rw - nfs4 server:/x rw\n"
        "23 22 0:3 / /shared/my\\040disk rw - xfs /dev/sdb rw\n"
    )
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: real(table if str(self).startswith("/proc") else self))
    assert is_local(Path("/home/run"))
    assert is_local(Path("/sharedness"))
    assert not is_local(Path("/shared/run"))
    assert is_local(Path("/shared/my disk/run"))
