"""The engine doctor, as people call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from mbr_live.bundle import Bundle
from mbr_live.engines import choice as engine_choice
from mbr_live.engines import openvino_engine
from mbr_live.engines import program as engine_program
from mbr_live.engines.parity import Parity
from mbr_live.engines.program import check_program
from mbr_live.types import EngineKind


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_program, "_TIMED_S", 0.01)
    monkeypatch.setattr(engine_choice, "_ROUND_S", 0.001)


def test_json_of_every_engine(int8_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_program(int8_bundle.path, as_json=True, anew=False) == 0
    found = json.loads(capsys.readouterr().out)
    engines = {each["kind"]: each for each in found["engines"]}
    assert list(engines) == list(get_args(EngineKind))
    assert engines["openvino-f32"]["convolutions"] == {"f32": 10}
    assert engines["openvino-f32"]["reference"].startswith("torch")
    assert engines["openvino-int8"]["convolutions"] == {"u8": 10}
    here = [each for each in engines.values() if not each["refused"]]
    assert all(each["well"] and each["p99_ms"] >= each["p50_ms"] > 0 for each in here)
    assert found["auto"]["chosen"] in found["auto"]["measured"]
    assert found["machine"]["versions"]["openvino"] == openvino_engine.version()
    assert found["machine"]["gpus"]["gpus"] or found["machine"]["gpus"]["why_none"]


def test_tables_say_what_is_not_here_and_what_differs(
    demo_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: False)
    monkeypatch.setattr(engine_program, "limits", lambda bundle, precision: Parity(0.0, 0.0))
    assert check_program(demo_bundle.path, as_json=False, anew=True) == 1
    said = capsys.readouterr().out
    assert "openvino-bf16: bf16 was asked for, but this CPU" in said
    assert "NO" in said  # torch is not float32 of OpenVINO to the last bit
    assert "auto takes openvino-" in said
