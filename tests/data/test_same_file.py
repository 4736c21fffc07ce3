"""Rows of one file in a batch of pre-training: kept apart, counted, and left alone in runs that began without that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.loader_corpus import DATA, GOOD, MODEL, good, same, training, words_of, write_corpus
from helpers.small_run import run, same_run

from vatt.config.data import DataConfig
from vatt.data.datasets.classification import LabelledDataset
from vatt.data.datasets.training import ClipDataset
from vatt.data.manifest import Manifest, write_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.training.metrics_log import read_metrics

OLD = replace(DATA, version=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(corpus: Manifest) -> Tokenizer:
    return words_of(corpus)


def repeated(corpus: Manifest, files: int, rows: int) -> Manifest:
    """`rows` rows of each of the first `files` clips, each of another span."""
    clips = [replace(corpus[i], start=0.1 * row) for i in range(files) for row in range(rows)]
    return Manifest(tuple(replace(clip, index=i) for i, clip in enumerate(clips)), corpus.root, corpus.labels)


def test_no_two_rows_of_a_file_meet(corpus: Manifest, tokenizer: Tokenizer) -> None:
    clips = repeated(corpus, 5, 6)
    dataset, old = training(clips, tokenizer), training(clips, tokenizer, OLD)
    met = 0
    for step in range(14):
        batch, before = dataset[step], old[step]
        files = [clips[i].path for i in batch.clips]
        assert len(set(files)) == 4
        assert batch.bad == []
        # What was planned stays in its slot; only what came second has gone, and each row has its own draws.
        kept = [
            i
            for i, path in enumerate([clips[i].path for i in before.clips])
            if path not in [clips[i].path for i in before.clips[:i]]
        ]
        assert [batch.clips[i] for i in kept] == [before.clips[i] for i in kept]
        assert dataset.repeats(step) == 4 - len(kept)
        assert old.repeats(step) == 0
        met += dataset.repeats(step)
        assert all((batch.video[i] == before.video[i]).all() for i in kept)
    assert met > 5
    assert same(dataset[3], training(clips, tokenizer)[3])  # one that has seen nothing


def test_parts_of_several_processes_make_up_the_batch(corpus: Manifest, tokenizer: Tokenizer) -> None:
    clips = repeated(corpus, 5, 6)
    whole = training(clips, tokenizer)
    parts = [ClipDataset(clips, DATA, MODEL, tokenizer, 7, slots=slots) for slots in (range(2), range(2, 4))]
    for step in range(6):
        assert [row for part in parts for row in part[step].clips] == whole[step].clips
        assert {part.repeats(step) for part in parts} == {whole.repeats(step)}


def test_those_that_stand_in_for_bad_clips_are_of_other_files_too(corpus: Manifest, tokenizer: Tokenizer) -> None:
    clips = [replace(corpus[i % len(corpus)], start=0.1 * (i // len(corpus))) for i in range(3 * len(corpus))]
    mixed = Manifest(tuple(replace(clip, index=i) for i, clip in enumerate(clips)), corpus.root, corpus.labels)
    dataset, bad = training(mixed, tokenizer), 0
    for step in range(12):
        batch = dataset[step]
        files = [mixed[i].path for i in batch.clips]
        planned = [mixed[dataset.planned(step, slot)].path for slot in range(4)]
        stand_ins = [path for path in files if path not in planned]
        assert all(files.count(path) == 1 for path in set(files) - set(stand_ins))
        bad += len(batch.bad)
    assert bad > 2


def test_files_that_are_all_different_keep_their_order(corpus: Manifest, tokenizer: Tokenizer) -> None:
    for clips in (corpus, good(corpus)):
        new, old = training(clips, tokenizer), training(clips, tokenizer, OLD)
        assert all(same(new[step], old[step]) for step in range(7))


def test_fewer_files_than_a_batch_and_classes_are_left_alone(corpus: Manifest, tokenizer: Tokenizer) -> None:
    few = repeated(corpus, 3, 6)
    assert same(training(few, tokenizer)[0], training(few, tokenizer, OLD)[0])
    many = repeated(corpus, 5, 6)
    labelled = [LabelledDataset(many, data, MODEL, "video", 7, None) for data in (DATA, OLD)]
    assert all(same(labelled[0][step], labelled[1][step]) for step in range(4))


def test_a_run_counts_them_and_an_older_one_goes_on_as_it_began(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path)
    manifest = tmp_path / "rows.csv"
    write_manifest(manifest, repeated(corpus, GOOD, 4))
    assert run("--data", manifest, "--out", tmp_path / "new", "--steps", 6) == 0
    told = capsys.readouterr().out
    count = sum(record["same_file"] for record in read_metrics(tmp_path / "new" / "metrics.jsonl"))
    assert count > 0
    assert f"the 40 rows are of {GOOD} files" in told
    assert f"{count} times a second row of a file gave way" in told.splitlines()[-1]

    assert run("--data", manifest, "--out", tmp_path / "old", "--steps", 6, "--set", "data.version=1") == 0
    assert not same_run(tmp_path / "new", tmp_path / "old")
    part = tmp_path / "part"
    assert run("--data", manifest, "--out", part, "--steps", 3, "--set", "data.version=1") == 0
    record = json.loads((part / "config.json").read_text())
    del record["config"]["data"]["version"]  # as runs were written before there was a version
    (part / "config.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert run("--out", part, "--resume", "--steps", 6) == 0
    assert "goes on so" in capsys.readouterr().out
    assert same_run(part, tmp_path / "old")
    assert run("--out", part, "--resume", "--set", "data.version=2") == 2
    assert DataConfig().version == 2
