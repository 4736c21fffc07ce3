"""Who computes plain attention: named outright, or by a table of measurements; never a silent change."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vatt_kernels as vk
from helpers.small_run import run
from torch import Tensor
from vatt_kernels.catalog import SPECS
from vatt_kernels.spec.error_budget import expect

from vatt import ops
from vatt.checkpoints.loading import load
from vatt.config.presets import preset
from vatt.embed import main as embed
from vatt.errors import ConfigError
from vatt.evaluate import main as evaluate
from vatt.model.transformer import Attention
from vatt.ops import OURS, Ops, attention_dropout, choose

ATTENTION = next(spec for spec in SPECS if spec.name == "attention")
PLAIN = [
    case
    for case in ATTENTION.cases()
    if not case.sizes["dropout"] and case.sizes["mask"] is None and not case.sizes["buckets"]
]


def xformers_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that computes what the real one does, so that how it is called is checked."""

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return torch.einsum(
            "bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q * scale, k).float().softmax(-1).to(q.dtype), v
        )

    package = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=package))
    monkeypatch.setitem(sys.modules, "xformers.ops", package)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["sdpa", "xformers"])
def test_others_are_within_the_budget_or_refuse(impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    xformers_of(monkeypatch)
    for case in PLAIN:
        expected = expect(ATTENTION, case, dtype)
        if case.sizes["lengths"]:
            with pytest.raises(ValueError, match=f'impl="{impl}" has no cu_seqlens; use impl="triton"'):
                ATTENTION.call(expected.inputs, impl)
            continue
        red = [str(e) for e in expected.errors(lambda inputs: ATTENTION.call(inputs, impl)) if not e.green]
        assert not red, case.name


def test_what_is_not_plain_is_refused_by_them() -> None:
    q, mask = torch.zeros(1, 3, 2, 8), torch.ones(1, 3, dtype=torch.bool)
    for impl in ("sdpa", "xformers"):
        with pytest.raises(ValueError, match="has no key_mask, bias_table"):
            vk.attention(q, q, q, key_mask=mask, bias_table=torch.zeros(32, 2), impl=impl)
        with pytest.raises(ValueError, match="drops other probabilities"):
            vk.attention(q, q, q, dropout_p=0.1, impl=impl)
    with pytest.raises(ImportError, match="needs the package xformers"):
        vk.attention(q, q, q, impl="xformers")


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, table: dict[str, str]) -> None:
    monkeypatch.setattr(ops, "has_triton", lambda: True)
    monkeypatch.setattr(ops, "ATTENTION_CHOICES", table)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU 1")


def test_auto_takes_what_was_measured_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.ATTENTION_CHOICES == {}  # nothing has been measured
    on_a_gpu(monkeypatch, {"GPU 1": "sdpa"})
    chosen = choose(True, "cuda")
    assert (chosen.attention_by, chosen.name) == ("sdpa", "triton, attention sdpa")
    assert "plain attention by sdpa, measured to be the fastest on GPU 1" in chosen.reason
    dropped = choose(True, "cuda", dropout=0.1)
    assert (dropped.attention_by, dropped.name) == (OURS, "triton")
    assert "as sdpa cannot: it drops other probabilities" in dropped.reason
    # A run keeps what it began with, whatever the table says now; the literal and the portable form are not asked.
    assert choose(True, "cuda", recorded=OURS).attention_by == OURS
    on_a_gpu(monkeypatch, {})
    assert "as when the run began" in choose(True, "cuda", recorded="sdpa").reason
    assert choose(False, "cuda").attention_by == choose(True, "cpu", recorded="sdpa").attention_by == OURS


@pytest.mark.parametrize(
    ("attention", "device", "dropout", "why"),
    [
        ("triton", "cpu", 0.0, "need a CUDA device, and this is cpu"),
        ("sdpa", "cpu", 0.1, "dropout is 0.1; it can be had with a dropout of 0"),
        ("xformers", "cuda", 0.0, r"xformers is not installed \(pip install -e '.\[xformers\]'\)"),
    ],
)
def test_what_is_named_and_cannot_run_is_refused(
    attention: str, device: str, dropout: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ops, "has_triton", lambda: True)
    with pytest.raises(ConfigError, match=f"attention={attention}: .*{why}; attention=auto"):
        choose(True, device, attention, dropout=dropout)
    # Of a finished model it is no request.
    said = choose(True, device, attention, dropout=dropout, asked=False)
    assert said.attention_by == OURS
    assert re.search(why, said.reason)


def test_the_rest_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text has a relative bias and a mask: others get plain attention alone, Triton all of it."""
    asked: list[Any] = []
    monkeypatch.setattr(vk, "attention", lambda qkv, *, impl, **options: asked.append(impl))
    q = torch.zeros(1, 1, 1, 1)
    for by in ("sdpa", "triton"):
        one = Ops("portable", "", by)
        one.attention(q, key_mask=None, bias_table=None)
        one.attention(q, key_mask=q, bias_table=None)
        one.attention(q, key_mask=None, bias_table=q)
    assert asked == ["sdpa", "portable", "portable", "triton", "triton", "triton"]
    model = preset("mbs").model
    assert attention_dropout(model) == 0.1
    text = replace(model.text_encoder, dropout=0.5)
    assert attention_dropout(replace(model, text_encoder=text)) == 0.1
    assert attention_dropout(replace(preset("ma_medium").model, video_encoder=text)) == 0.1


@pytest.mark.usefixtures("cache")
def test_a_run_records_it_and_later_commands_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    none = [f"--set=model.{encoder}_encoder.dropout=0" for encoder in ("video", "audio", "text", "shared")]
    assert run("--out", tmp_path / "dropped", "--steps", 1, "--set=attention=sdpa") == 2
    assert "attention=sdpa: it drops other probabilities" in capsys.readouterr().err
    assert not (tmp_path / "dropped").exists()
    assert run("--out", out, "--steps", 1, "--fused", "--set=attention=sdpa", *none) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["config"]["attention"], result["environment"]["attention"]) == ("sdpa", "sdpa")
    assert "plain attention by sdpa, as asked for" in result["environment"]["operations"]
    assert json.loads((out / "config.json").read_text())["environment"]["attention"] == "sdpa"
    assert {m.ops.attention_by for m in load(out).modules() if isinstance(m, Attention)} == {"sdpa"}

    capsys.readouterr()
    assert evaluate(["--task=retrieve", f"--run={out}", "--device=cpu", f"--out={tmp_path / 'scores'}"]) == 0
    assert "plain attention by sdpa" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "result.json").read_text())["evaluate"]["attention"] == "sdpa"
    clips = next(tmp_path.parent.glob("cache*/shapes-*"))
    asked = ["--device=cpu", f"--model={out}", f"--data={clips}", f"--out={tmp_path / 'f.npz'}", "--windows=1"]
    assert embed([*asked, "--attention=triton"]) == 2
    assert "attention=triton: its kernels need a CUDA device" in capsys.readouterr().err
