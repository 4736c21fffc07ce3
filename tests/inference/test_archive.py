"""Archives: grown, searched, filtered, killed in the middle, written by two at once, damaged."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import RECORD, WIDTHS, rows, stamp
from helpers.media import steady, write_clip
from helpers.small_model import write_model

import vatt
from vatt import embed, search
from vatt.errors import ConfigError
from vatt.inference.search import archive
from vatt.inference.search.archive import create_archive, moment_id, open_archive
from vatt.inference.search.filling import removable

pytest.importorskip("lancedb", reason="LanceDB comes with pip install -e '.[archive]'")


@pytest.fixture
def small(tmp_path):
    """Two files with five and three moments."""
    made = create_archive(tmp_path / "a.lance", RECORD, WIDTHS)
    made.put(rows("/a.mp4", 5, label="dog") + rows("/it's.mp4", 3), stamp("/a.mp4", "/it's.mp4"))
    return made


def spans(made) -> list[tuple[str, float]]:
    found = made.nearest("video_to_text", np.ones(8, np.float32), 1000)
    return sorted((hit["path"], hit["start"]) for hit in found)


def test_moments_of_a_file_are_replaced_together(small):
    assert spans(small) == [("/a.mp4", float(i)) for i in range(5)] + [("/it's.mp4", float(i)) for i in range(3)]
    before = small.table.version
    small.put(rows("/it's.mp4", 2, seed=1), stamp("/it's.mp4"))
    assert small.table.version == before + 1
    assert spans(small)[5:] == [("/it's.mp4", 0.0), ("/it's.mp4", 1.0)]
    assert len(open_archive(small.source)) == 7
    small.remove(["/a.mp4"])
    assert list(small.known()) == ["/it's.mp4"]


def test_cosines_are_those_of_numpy_and_filters_filter(small):
    query = np.random.default_rng(3).standard_normal(8).astype(np.float32)
    wanted = {}
    for row in rows("/a.mp4", 5) + rows("/it's.mp4", 3):
        vector = row["video_to_text"].astype(np.float64)
        wanted[row["path"], row["start"]] = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
    hits = small.nearest("video_to_text", query, 8)
    assert [hit["cosine"] for hit in hits] == sorted((hit["cosine"] for hit in hits), reverse=True)
    for hit in hits:
        assert hit["cosine"] == pytest.approx(wanted[hit["path"], hit["start"]], abs=1e-6)
    some = small.nearest("video_to_text", query, 8, "label = 'dog' and start > 2 and end < 6")
    assert {(hit["path"], hit["start"]) for hit in some} == {("/a.mp4", 3.0)}
    identity = hits[3]["id"]
    np.testing.assert_array_equal(
        small.vector(identity, "video_to_text"), open_archive(small.source).vector(identity, "video_to_text")
    )
    assert small.holds("/it's.mp4")
    assert not small.holds("")
    for wrong in ("label =", "nothing = 3", "start > 'x'", "1", "label = 'dog'; drop", "start > 1 and", "(", ""):
        with pytest.raises(ConfigError, match="its columns are path") as told:
            small.check_filter(wrong)
        assert ".rs" not in str(told.value)
    small.check_filter("label = 'a;b'")


def test_vectors_that_are_no_directions_never_rank(small):
    odd = rows("/odd.mp4", 4)
    odd[0]["video_to_text"][2] = np.nan
    odd[1]["video_to_text"][:] = 0
    odd[2]["video_to_text"][0] = np.inf
    small.put(odd, stamp("/odd.mp4"))
    assert [start for path, start in spans(small) if path == "/odd.mp4"] == [3.0]
    assert small.silent() == 3


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(vatt.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], env=environment)


def test_two_processes_add_at_once(small, tmp_path):
    """The same file and files of their own, each change at the same time as the other's."""
    code = """
        import sys, time, pathlib
        from helpers.archives import rows, stamp
        from vatt.inference.search.archive import open_archive
        who, source, place = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
        table = open_archive(source)
        for step in range(4):
            (place / f"{who}-{step}").touch()
            while not (place / f"{1 - who}-{step}").exists():
                time.sleep(0.001)
            table.put(rows("/same.mp4", 2 + step, seed=who) + rows(f"/{who}-{step}.mp4", 2),
                      stamp("/same.mp4", f"/{who}-{step}.mp4"))
    """
    both = [run_python(code, who, small.source, tmp_path) for who in (0, 1)]
    assert [process.wait(120) for process in both] == [0, 0]
    found = spans(open_archive(small.source))
    assert len(found) == len(set(found)) == 8 + 16 + 5
    assert [start for path, start in found if path == "/same.mp4"] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("moment", ["while", "after"])
def test_a_kill_at_the_commit_loses_and_doubles_nothing(small, moment):
    """kill -9 when data are written and the version is perhaps not, and when it just is."""
    code = """
        import os, signal, sys
        from helpers.archives import rows, stamp
        from lancedb.merge import LanceMergeInsertBuilder
        from vatt.inference.search.archive import open_archive
        table = open_archive(sys.argv[1])
        execute = LanceMergeInsertBuilder.execute
        def killed(self, *a, **b):
            execute(self, *a, **b)
            os.kill(os.getpid(), signal.SIGKILL)
        LanceMergeInsertBuilder.execute = killed
        table.put(rows("/a.mp4", 3, seed=9) + rows("/new.mp4", 2), stamp("/a.mp4", "/new.mp4"))
    """
    data = Path(small.source, "data")
    there = len(list(data.iterdir()))
    process = run_python(code, small.source)
    while moment == "while" and process.poll() is None:
        if len(list(data.iterdir())) > there:
            process.kill()
        time.sleep(0.001)
    assert process.wait(60) == -9
    again = open_archive(small.source)
    others = [("/it's.mp4", float(i)) for i in range(3)]
    old = sorted([*others, *(("/a.mp4", float(i)) for i in range(5))])
    new = sorted([*others, *(("/a.mp4", float(i)) for i in range(3)), ("/new.mp4", 0.0), ("/new.mp4", 1.0)])
    assert spans(again) in {"while": [old, new], "after": [new]}[moment]
    again.put(rows("/a.mp4", 3, seed=9) + rows("/new.mp4", 2), stamp("/a.mp4", "/new.mp4"))
    assert spans(again) == new


def test_many_rows_get_an_index_whose_recall_is_told(small, monkeypatch):
    monkeypatch.setattr(archive, "INDEXED_FROM", 600)
    monkeypatch.setattr(archive, "SAMPLES", 20)
    small.put(rows("/long.mp4", 700), stamp("/long.mp4"))
    told = small.settle()
    assert len(told) == 2
    assert "index of 708 rows of video_to_text" in told[0]
    assert small.settle() == []  # there is nothing new
    again = open_archive(small.source)
    assert again.indexes["video_to_text"]["recall"] >= 0.95
    kinds = {index.columns[0]: index.index_type for index in again.table.list_indices()}
    assert kinds == {"id": "BTree", "path": "BTree", "video_to_text": "IvfRq", "video_to_audio": "IvfRq"}
    queries, nearest = again._sample("video_to_text", 708)
    vectors = np.stack([row["video_to_text"] for row in rows("/long.mp4", 700)])
    cosine = vectors @ queries[7] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(queries[7])
    wanted = {moment_id("/long.mp4", i, i + 2) for i in np.argsort(-cosine)[:10]}
    assert len(wanted & nearest[7]) >= 10 - 3  # the small files have eight rows
    hits = again.nearest("video_to_text", queries[7], 10)
    assert hits[0]["cosine"] == pytest.approx(cosine.max(), abs=1e-6)  # exact, although the index is not
    again.put(rows("/later.mp4", 30, seed=5), stamp("/later.mp4"))
    hit = again.nearest("video_to_text", rows("/later.mp4", 30, seed=5)[7]["video_to_text"], 1)[0]
    assert (hit["path"], hit["start"]) == ("/later.mp4", 7.0)  # found before it is in the index
    assert again.holds("/later.mp4")
    assert again.settle() == []
    assert len(spans(again)) == 738
    again.remove(["/later.mp4"])
    assert not again.holds("/later.mp4")
    assert len(spans(again)) == 708
    assert again.settle() == []  # no row that is new to the index has a vector


def test_an_archive_of_an_earlier_version_is_searched_and_added_to(tmp_path, monkeypatch):
    """Without the column that holds what is shown, and with a row that tells how an index is searched."""
    schema_of = archive._schema
    with monkeypatch.context() as earlier:
        earlier.setattr(archive, "_schema", lambda *a: schema_of(*a).remove(schema_of(*a).get_field_index("shown")))
        made = create_archive(tmp_path / "a.lance", RECORD, WIDTHS)
    made.put(rows("/a.mp4", 5, label="dog"), stamp("/a.mp4"))
    told = {"rows": 5, "partitions": 3, "refined": 2, "recall": 1.0}
    made._commit([{"id": "video_to_text", "path": "", "reason": json.dumps(told)}], "false")
    again = open_archive(made.source)
    assert again.indexes == {"video_to_text": told}
    again.indexes.clear()  # there is no index in so small a table
    again.put(rows("/b.mp4", 2), stamp("/b.mp4"))
    assert spans(again) == [("/a.mp4", float(i)) for i in range(5)] + [("/b.mp4", 0.0), ("/b.mp4", 1.0)]
    hit = again.nearest("video_to_text", rows("/a.mp4", 5)[2]["video_to_text"], 1)[0]
    assert (hit["path"], hit["start"], hit["end"], hit["label"]) == ("/a.mp4", 2.0, 4.0, "dog")


def test_archives_that_are_none(small, tmp_path, capsys):
    for make in (lambda place: shutil.rmtree(place / "_versions"), lambda place: shutil.rmtree(place / "data")):
        place = tmp_path / "broken.lance"
        shutil.copytree(small.source, place)
        make(place)
        assert search.main([f"--index={place}", "a square"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {place}")
        assert said.count("\n") == 1
        shutil.rmtree(place)
    (tmp_path / "file.lance").write_bytes(b"no table")
    for name in ("none.lance", "file.lance"):
        assert search.main([f"--index={tmp_path / name}", "a square"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    for version in Path(small.source, "_versions").iterdir():
        version.write_bytes(version.read_bytes()[:50])
    assert search.main([f"--index={small.source}", "a square"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus) -> Path:
    return write_model(tmp_path_factory.mktemp("runs") / "run", corpus)


def test_the_command_adds_what_is_new_or_changed(model, tmp_path, capsys, monkeypatch):
    clips, out = tmp_path / "clips", tmp_path / "films.lance"
    clips.mkdir()
    for name, seconds in (("a", 4), ("b", 3), ("c", 2)):
        write_clip(clips / f"{name}.mp4", steady(seconds, 10))
    flags = [f"--model={model}", f"--data={clips}", "--every=1", "--window=1", f"--out={out}", "--workers=0"]
    decoded = []
    sample = embed.EvalDataset._sample
    monkeypatch.setattr(embed.EvalDataset, "_sample", lambda *a: (decoded.append(a[1].path.stem), sample(*a))[1])

    def run(*more: str) -> tuple[str, str]:
        decoded.clear()
        assert embed.main([*flags, *more]) == 0
        return capsys.readouterr().out, "".join(decoded)

    assert run()[1] == "aaaabbbcc"
    said, read = run()
    assert "0 files are new, 0 changed, 3 are as they were" in said
    assert read == ""
    os.utime(clips / "a.mp4", ns=(1, 1))  # copied or touched: the same content
    write_clip(clips / "b.mp4", steady(2, 10))
    write_clip(clips / "d.mp4", steady(1, 10))
    (clips / "c.mp4").unlink()
    (clips / "e.mp4").write_bytes(b"no film")
    said, read = run("--max-bad-share=1")
    assert "2 files are new, 1 changed, 1 are as they were" in said
    assert "1 files are not there any more; --sync" in said
    assert read == "bbd"
    assert search.main([f"--index={out}", "a square", "--top=20"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 9
    assert sum("(the file is gone)" in line for line in lines) == 2
    assert search.main([f"--index={out}", "a square", "--where=path like '%b.mp4' and start > 0.5", "--json"]) == 0
    assert capsys.readouterr().out.count('"path"') == 1
    assert "their rows were removed" in run("--sync")[0]
    assert search.main([f"--index={out}", "a square", "--per-file=1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    assert search.main([f"--index={out}", "a square", "--where=start >"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert embed.main([*flags, "--every=2"]) == 1
    assert "begun with other settings (every: 1.0, now 2.0)" in capsys.readouterr().err


def test_an_archive_of_another_model_is_refused(small, model, tmp_path, capsys):
    assert search.main([f"--index={small.source}", "a square", f"--model={model}"]) == 1
    assert "made by another model" in capsys.readouterr().err
    with pytest.raises(vatt.errors.RunError, match="weights_sha256"):
        create_archive(small.source, RECORD | {"weights_sha256": "b"}, WIDTHS)


def test_folders_that_are_away_are_not_vanished_files(tmp_path):
    (tmp_path / "here").mkdir()
    paths = [f"{tmp_path}/corpus/gone/a.mp4", f"{tmp_path}/here/b.mp4", f"{tmp_path}/disk/c.mp4"]
    assert removable(paths, tmp_path / "corpus") == (sorted(paths[:2]), paths[2:])


def test_other_indexes_are_not_filtered(model, tmp_path):
    features = vatt.embed(model, [write(tmp_path)])
    with pytest.raises(ConfigError, match="only archives"):
        vatt.SearchIndex(features, model).search("a square", where="start > 1")


def write(folder: Path) -> Path:
    write_clip(folder / "one.mp4", steady(2, 10))
    return folder / "one.mp4"
