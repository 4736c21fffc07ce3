"""Files of our own formats that somebody changed: each ends as values or as one sentence, never as a traceback.

Of each kind a whole file is changed at random, as JSON, as arrays or as a table, and given to the commands that read
it. VATT_FUZZ=10000 tries that many new cases of each kind.
"""

import contextlib
import json
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_model import write_model
from helpers.small_run import run

pytest.importorskip("hypothesis", reason="pip install -e '.[test]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vatt
from vatt import card, embed, search, train
from vatt.checkpoints import training_checkpoint as checkpoint
from vatt.checkpoints.training_checkpoint import DamagedCheckpoint, ForeignCheckpoint, load_latest
from vatt.errors import RunError
from vatt.inference.features_file import FeaturesError, read_features
from vatt.inference.search.index import COLUMNS
from vatt.runtime.forms import FormError, parse_json, printable, require_form
from vatt.training import status

ASKED = os.environ.get("VATT_FUZZ")
fuzz = settings(
    max_examples=int(ASKED or 40),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
MOST_SECONDS, MOST_BYTES = 2.0, 10**9
numbers = st.sampled_from([0, 1, -1, 3, 10**9, 10**12, 2**63, 10**400, 0.5, float("inf"), float("-inf"), float("nan")])
plain = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.just("\x1b[2J\n")
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
places = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), values), min_size=1, max_size=3)


@contextlib.contextmanager
def bounded():
    """Inside, this process may not take much more time, nor memory on top of what it has."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (has + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < MOST_SECONDS


def leaves(node, path=()):
    """Paths to everything below `node`, whole branches too."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def changed(record, changes):
    """A copy of `record` (JSON) with other values at some places."""
    record = json.loads(json.dumps(record))
    for share, value in changes:
        found = list(leaves(record))
        if not found:
            break
        *parents, last = found[int(share * len(found))]
        node = record
        for key in parents:
            node = node[key]
        node[last] = value
    return record


def ends_well(main, arguments, capsys):
    """Whether the command ended with values, or with one sentence and exit code 1 or 2."""
    with bounded():
        code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert "Traceback" not in said.err
    assert "\x1b" not in said.out + said.err
    if code:
        assert said.err.splitlines()[-1].startswith("error: ")
    return code


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A finished run of three steps, of which a copy is damaged by each test."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("--out", out, "--steps", 3, "--fused", "--set=save_every=1") == 0
    (out / "bad_clips.csv").write_text("path,row,reason,first_step,count\n/a/b.mp4,3,is empty,1,2\n")
    return out


@pytest.fixture
def out(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@fuzz
@given(changes=places)
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_records_of_a_run(name, out, whole, changes, capsys):
    record = json.loads((whole / name).read_text())
    (out / name).write_text(json.dumps(changed(record, changes)))
    ends_well(train.main, ["--status", out], capsys)
    ends_well(card.main, [out, "--force"], capsys)


@fuzz
@given(changes=places)
def test_metrics(out, whole, changes, capsys):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed(lines, changes)))
    ends_well(train.main, ["--status", out], capsys)
    ends_well(card.main, [out, "--force"], capsys)


TABLES = [
    "path;row;reason;first_step;count\n/a/b.mp4;3;is empty;1;2\n",
    "\ufeffpath,row,reason,first_step,count\r\n/a/b.mp4,3,is empty,1,2\r\n",
    "path\trow\treason\tfirst_step\tcount\n/a/b.mp4\t3\tis empty\t1\t2.0\n",
]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_a_spreadsheet_has_saved(table, out, capsys):
    (out / "bad_clips.csv").write_text(table)
    assert ends_well(train.main, ["--status", out], capsys) == 0
    assert status.status(out).replaced == 2


@fuzz
@given(
    text=st.text(max_size=60) | st.sampled_from(["path,row\n1,2\n", "count\nx\n", "count\n1e999\n", '"', "count\n\n"])
)
def test_any_table_of_bad_clips(text, out, capsys):
    (out / "bad_clips.csv").write_bytes(text.encode(errors="surrogatepass"))
    ends_well(train.main, ["--status", out], capsys)


@pytest.mark.parametrize(
    "name", ["step-00000002 (copy)", "step-00000009", "step-x", "step-", "step-99999999999999999999"]
)
def test_a_copied_step_folder(name, out, capsys, caplog):
    shutil.copytree(out / "checkpoints" / "step-00000002", out / "checkpoints" / name)
    assert ends_well(train.main, ["--status", out], capsys) == 0
    assert load_latest(out / "checkpoints").step == 3
    renamed = any("holds step 2; it was renamed or copied" in line for line in caplog.messages)
    assert renamed == (name in ("step-00000009", "step-99999999999999999999"))


def resealed(path, state):
    """The checkpoint with another state, its checksums right."""
    torch.save(state, path / "state.pt")
    sums = json.loads((path / "checksums.json").read_text())
    sums["state.pt"] = checkpoint._sha256(path / "state.pt")
    (path / "checksums.json").write_text(json.dumps(sums))


def test_a_checkpoint_without_a_format_number_is_of_the_first_format(out, capsys):
    """What runs of earlier versions left is resumed."""
    newest = out / "checkpoints" / "step-00000003"
    state = torch.load(newest / "state.pt", weights_only=True)
    assert state.pop("format") == checkpoint.FORMAT
    resealed(newest, state)
    (out / "result.json").unlink()
    assert run("--out", out, "--resume") == 0
    resealed(newest, state | {"format": checkpoint.FORMAT + 1})
    with pytest.raises(ForeignCheckpoint, match=r"has format 3, this version reads up to 2; resume with the version"):
        checkpoint.load(newest)
    assert ends_well(train.main, ["--out", out, "--resume"], capsys) == 1


@fuzz
@given(changes=places, missing=st.sampled_from(["", "step", "optimizer", "manifest", "words", "bad_clips", "record"]))
def test_states_with_right_checksums(out, whole, changes, missing):
    newest = out / "checkpoints" / "step-00000003"
    state = torch.load(whole / "checkpoints" / "step-00000003" / "state.pt", weights_only=True)
    if missing:
        del state[missing]
    resealed(newest, changed_state(state, changes))
    with bounded(), contextlib.suppress(DamagedCheckpoint, ForeignCheckpoint):
        checkpoint.load(newest)


def changed_state(state, changes):
    for share, value in changes:
        found = list(leaves({k: v for k, v in state.items() if k != "optimizer"}))
        *parents, last = found[int(share * len(found))]
        node = state
        for key in parents:
            node = node[key]
        with contextlib.suppress(TypeError):
            node[last] = value if not isinstance(value, int) or abs(value) < 2**63 else 0
    return state


@pytest.mark.parametrize("key", ["optimizer", "manifest", "bad_clips", "record"])
def test_a_run_says_what_is_wrong_with_a_state(key, out, capsys):
    newest = out / "checkpoints" / "step-00000003"
    state = torch.load(newest / "state.pt", weights_only=True)
    for wrong in ({k: v for k, v in state.items() if k != key}, state | {key: {"state": {"x": []}}}):
        resealed(newest, wrong)
        assert ends_well(train.main, ["--out", out, "--resume"], capsys) == 1


@fuzz
@given(data=st.binary(max_size=80) | st.sampled_from([b"[" * 10**5, b"{}", b'{"state.pt": 1}', b'{"../x": "0"}']))
def test_checksums(out, data):
    newest = out / "checkpoints" / "step-00000003"
    (newest / "checksums.json").write_bytes(data)
    with bounded(), contextlib.suppress(DamagedCheckpoint):
        checkpoint.load(newest)


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus):
    return write_model(tmp_path_factory.mktemp("model") / "run", corpus)


@pytest.fixture(scope="module")
def index(tmp_path_factory, model, corpus):
    path = tmp_path_factory.mktemp("index") / "all.npz"
    assert embed.main([f"--model={model}", f"--data={corpus}", f"--out={path}", "--windows=1", "--device=cpu"]) == 0
    return path


def copy_of(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    source = model / "model" if (model / "model").is_dir() else model
    shutil.copytree(source, folder)
    return folder


SIZES = {
    "video_encoder.layers": 10**9,
    "video_encoder.width": 10**9,
    "text_encoder.layers": 10**9,
    "text.vocabulary": 10**12,
    "text.words": 10**9,
    "video.size": 10**9,
    "video.tables": [10**9] * 3,
    "video.frames": float("inf"),
    "video_encoder.heads": 2**62,
    "audio.samples": 10**18,
    "post_width": 10**400,
    "head.video_text": 10**9,
}


@pytest.mark.parametrize("name", SIZES)
def test_settings_that_ask_for_absurd_sizes(name, model, tmp_path):
    """They are compared with the weights before anything is built."""
    folder = copy_of(model, tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    section, _, leaf = f"model.{name}".rpartition(".")
    node = record["config"]
    for key in section.split("."):
        node = node[key]
    node[leaf] = SIZES[name]
    (folder / "config.json").write_text(json.dumps(record))
    with bounded(), pytest.raises(RunError, match=r"config\.json"):
        vatt.load(folder)


@fuzz
@given(changes=places)
def test_settings_of_a_model(model, tmp_path, changes):
    folder = copy_of(model, tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(record, changes)))
    with bounded(), contextlib.suppress(RunError):
        vatt.load(folder)


def forged(base, name):
    """Features with right archives and wrong contents."""
    video, clips = base["video_to_text"], len(base["row"])
    meta = json.loads(str(base["metadata"]))
    not_a_number, infinite = video.copy(), video.copy()
    not_a_number[0, 0], infinite[0, 0] = np.nan, np.inf

    def metadata(**change):
        kept = {key: value for key, value in (meta | change).items() if value is not None}
        return {"metadata": np.array(json.dumps(kept))}

    return {
        "not a number": {"video_to_text": not_a_number},
        "infinite": {"video_to_text": infinite},
        "text": {"video_to_text": video.astype(str)},
        "complex": {"video_to_text": video.astype(complex)},
        "one axis": {"video_to_text": video[:, 0]},
        "three axes": {"video_to_text": video[None]},
        "narrow": {"video_to_text": video[:, :9]},
        "fewer rows": {"video_to_text": video[:5]},
        "more rows": {"video_to_text": np.concatenate([video, video])},
        "positions beyond": {"video_clip": base["video_clip"] + 1000},
        "positions negative": {"video_clip": base["video_clip"] - clips},
        "positions float": {"video_clip": base["video_clip"].astype(float)},
        "positions twice": {"video_clip": base["video_clip"] * 0},
        "few captions": {"caption": base["caption"][:3]},
        "few paths": {"path": base["path"][:3]},
        "start text": {"start": base["start"].astype(str)},
        "objects": {"caption": np.zeros(3, "V8")},
        "no windows": metadata(windows=None),
        "windows text": metadata(windows="many"),
        "windows 0": metadata(windows=0),
        "no weights": metadata(weights_sha256=None),
        "no model": metadata(model=None),
        "format 9": metadata(format=9),
        "deep metadata": {"metadata": np.array('{"a":' * 100_000)},
        "metadata of numbers": {"metadata": np.arange(3)},
    }[name]


FORGED = [
    "not a number",
    "infinite",
    "text",
    "complex",
    "one axis",
    "three axes",
    "narrow",
    "fewer rows",
    "more rows",
    "positions beyond",
    "positions negative",
    "positions float",
    "positions twice",
    "few captions",
    "few paths",
    "start text",
    "objects",
    "no windows",
    "windows text",
    "windows 0",
    "no weights",
    "no model",
    "format 9",
    "deep metadata",
    "metadata of numbers",
]


@pytest.mark.parametrize("name", FORGED)
def test_features_with_wrong_contents_are_refused(name, index, model, tmp_path, capsys):
    base = dict(np.load(index))
    np.savez(tmp_path / "f.npz", **{**base, **forged(base, name)})
    assert search.main(["--index", str(tmp_path / "f.npz"), "--model", str(model), "a red circle"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'f.npz'} ")
    assert said.count("\n") == 1


def test_control_characters_of_paths_are_escaped(index, model, tmp_path, capsys):
    base = dict(np.load(index))
    base["path"] = np.array(["\x1b[2Ja\n   1   0.999  forged.mp4"] * len(base["row"]))
    np.savez(tmp_path / "f.npz", **base)
    assert search.main(["--index", str(tmp_path / "f.npz"), "--model", str(model), "--top", "2", "a red circle"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 4
    assert said.count(r"\x1b[2Ja\n") == 2


arrays = st.sampled_from(["<f4", "<f8", "<i8", "|b1", "<U3", "<c8", "|u1", "<M8[s]"])
shapes = st.lists(st.sampled_from([0, 1, 3, 23, 24, 32]), max_size=3)


@fuzz
@given(
    name=st.sampled_from((*COLUMNS, "video_to_text", "metadata")),
    kind=arrays,
    shape=shapes,
    fill=st.sampled_from([0, 1, -1, 5, 1000]),
)
def test_arrays_of_any_kind(index, model, tmp_path, name, kind, shape, fill, capsys):
    base = dict(np.load(index))
    path = tmp_path / "f.npz"
    np.savez(path, **{**base, name: np.full(shape, fill).astype(kind)})
    ends_well(search.main, ["--index", path, "--model", model, "--device=cpu", "a red circle"], capsys)


@fuzz
@given(
    name=st.sampled_from(["path", "start", "captions", "video_to_text", "reason"]),
    changes=st.sampled_from(["int", "text", "nested", "null", "list"]),
)
def test_tables_of_any_kind(index, tmp_path, name, changes):
    pa = pytest.importorskip("pyarrow", reason="pip install -e '.[features]'")
    from pyarrow import parquet

    from vatt.inference.features_file import NAMES, _write_parquet

    path = tmp_path / "f.parquet"
    base = dict(np.load(index))
    np.savez(tmp_path / "shard.npz", **{key: base[key] for key in NAMES})
    _write_parquet(path, [tmp_path / "shard.npz"], str(base["metadata"]))
    table = parquet.read_table(path)
    count = len(table)
    column = {
        "int": [1] * count,
        "text": ["x"] * count,
        "nested": [[[1.0]]] * count,
        "null": [None] * count,
        "list": [[1.0]] * count,
    }[changes]
    table = table.set_column(table.column_names.index(name), name, pa.array(column))
    parquet.write_table(table, path)
    with contextlib.suppress(FeaturesError):
        read_features(path)


@fuzz
@given(
    value=values, form=st.sampled_from([int, float, str, bool, dict, list, (int, None), {"a": int, "b?": [str]}, [int]])
)
def test_forms(value, form):
    text = json.dumps(value)
    try:
        parsed = parse_json(text, form)
    except FormError as error:
        said = str(error)
    else:
        require_form(parsed, form)
        said = ""
    assert said.isprintable()


@pytest.mark.parametrize("text", ["", "{", "[" * 10**6, "\x00", '{"a": ' * 10**5, "1" * 10**5, b"\xff\xfe"])
def test_what_is_no_json(text):
    with bounded(), pytest.raises(FormError):
        parse_json(text)


def test_printable():
    assert printable("Größe 字 ok") == "Größe 字 ok"
    assert printable("a\x1b[31m\n\t\u202e\udcff\x7f") == r"a\x1b[31m\n\t\u202e\udcff\x7f"
