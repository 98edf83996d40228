"""Which engine computes: by name, by measurement, and never another than the one that a session began with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import mbr_live, played, system_config

from mbr_live.bundle import Bundle
from mbr_live.config import Config, load_config
from mbr_live.engines import choice as engine_choice
from mbr_live.engines.choice import Choice, Measured, candidates, choose, engine_of, fastest, kind_of, open_engine
from mbr_live.live.infer import infer
from mbr_live.sinks.run_manifest import read_run
from mbr_live.types import EngineKind, EngineWish, MbrError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, also for the processes that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mbr-live" / "engines"


def measured(kind: EngineKind, fps: float, *, refused: str | None = None) -> Measured:
    return Measured(kind=kind, threads=1, batch=1, frames_per_s=fps, refused=refused)


def test_every_kind_is_known_by_the_name_that_a_run_keeps() -> None:
    assert set(get_args(EngineWish)) == {*get_args(EngineKind), "auto"}
    assert kind_of("openvino 2026.4.1 cpu f32") == "openvino-f32"
    assert kind_of("openvino 2031.0.0 cpu int8") == "openvino-int8"
    assert kind_of("torch 2.14.1 cpu f32") == "torch"
    assert kind_of("tensorrt 11.4.0.106 NVIDIA-H100 f16") == "tensorrt-f16"
    for strange in ("", "openvino", "openvino 2026.4.1 cpu f64", "tensorrt 11.0 gpu f64"):
        with pytest.raises(MbrError, match="no such engine"):
            kind_of(strange)


def test_float32_unless_another_is_clearly_faster() -> None:
    exact = measured("openvino-f32", 100.0)
    assert fastest([exact, measured("openvino-bf16", 109.0)]) == exact
    assert fastest([exact, measured("openvino-bf16", 112.0)]).kind == "openvino-bf16"
    assert fastest([exact, measured("openvino-int8", 500.0, refused="it differs")]) == exact
    assert fastest([exact, measured("openvino-int8", 500.0)], "openvino-f32") == exact
    with pytest.raises(MbrError, match="no openvino-int8 passed"):
        fastest([exact, measured("openvino-int8", 500.0, refused="it differs")], "openvino-int8")


@given(st.lists(st.tuples(st.sampled_from(get_args(EngineKind)), st.floats(1, 1e5), st.booleans()), min_size=1))
def test_nothing_refused_is_taken_and_nothing_clearly_faster_is_left(
    rows: list[tuple[EngineKind, float, bool]],
) -> None:
    table = [measured(kind, fps, refused="no" if refused else None) for kind, fps, refused in rows]
    passed = [each for each in table if each.refused is None]
    if not passed:
        with pytest.raises(MbrError):
            fastest(table)
        return
    best = fastest(table)
    assert best in passed
    assert max(each.frames_per_s for each in passed) <= 1.1001 * best.frames_per_s


def test_auto_measures_once_and_writes_down_what_it_found(
    int8_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "_ROUND_S", 0.01)
    choice = choose(int8_bundle)
    (file,) = cache.iterdir()
    assert Choice.model_validate_json(file.read_bytes()) == choice
    assert {(each.kind, each.threads, each.batch) for each in choice.measured} == {
        (f"openvino-{precision}", threads, batch) for precision, threads, batch in candidates(int8_bundle)
    }
    assert all(each.refused is None and each.frames_per_s > 0 for each in choice.measured)
    assert choice.chosen == fastest(choice.measured)
    assert f"auto takes {choice.chosen.kind}" in choice.why
    again = choice.model_copy(update={"why": "measured again"})
    monkeypatch.setattr(engine_choice, "measure", lambda bundle: again)
    assert choose(int8_bundle) == choice
    assert kind_of(open_engine(int8_bundle, "auto").name) == choice.chosen.kind
    for kind in ("openvino-f32", "openvino-int8"):  # a session that goes on
        assert kind_of(open_engine(int8_bundle, "auto", recorded=kind).name) == kind
    assert choose(int8_bundle, anew=True) == choose(int8_bundle) == again


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 2}', b"\xff\x00", b"[1, 2"])
def test_a_damaged_choice_is_made_anew(
    demo_bundle: Bundle, cache: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "_ROUND_S", 0.001)
    monkeypatch.setattr(engine_choice, "candidates", lambda bundle: [("f32", 1, 1)])
    choice = choose(demo_bundle)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert choose(demo_bundle).measured[0].kind == choice.measured[0].kind
    assert Choice.model_validate_json(file.read_bytes()).bundle_sha256 == demo_bundle.sha256
    assert [each.name for each in cache.iterdir()] == [file.name]


def test_a_choice_that_can_not_be_kept_is_used(
    demo_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_choice, "_ROUND_S", 0.001)
    monkeypatch.setattr(engine_choice, "candidates", lambda bundle: [("f32", 1, 1)])
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert choose(demo_bundle).chosen.kind == "openvino-f32"
    assert "cannot be written" in caplog.text


def test_what_differs_is_not_taken(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "_ROUND_S", 0.001)
    monkeypatch.setattr(engine_choice, "passes", lambda found, allowed: found.feature_error == 0.0)
    choice = engine_choice.measure(int8_bundle)
    assert choice.chosen.kind == "openvino-f32"
    refused = [each for each in choice.measured if each.refused]
    assert {each.kind for each in refused} == {each.kind for each in choice.measured} - {"openvino-f32"}
    assert all("differs from openvino-f32" in str(each.refused) for each in refused)


def test_another_bundle_is_another_choice(demo_bundle: Bundle, int8_bundle: Bundle, cache: Path) -> None:
    assert engine_choice._key(demo_bundle) != engine_choice._key(int8_bundle)


def test_torch_that_is_not_installed_is_explained(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "mbr_live.engines.torch_engine", raising=False)
    monkeypatch.delitem(sys.modules, "mbr_live.engines.onnx_torch", raising=False)
    with pytest.raises(MbrError, match=r"torch is not installed. Run: pip install 'mbr-live\[train\]'"):
        engine_of(demo_bundle, "torch")


def test_the_live_path_does_without_torch() -> None:
    program = (
        "import sys, mbr_live.live.infer, mbr_live.batch.program, mbr_live.engines.choice as choice\n"
        "from mbr_live.bundle import load_bundle\nfrom mbr_live.config import DEMO_BUNDLE\n"
        "choice.open_engine(load_bundle(DEMO_BUNDLE), 'openvino-f32')\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_configuration_names_an_engine(tmp_path: Path) -> None:
    text = 'out = "out"\n{}\n[[camera]]\nname = "a"\nsource = {{ kind = "simulated" }}\n'
    file = tmp_path / "system.toml"
    file.write_text(text.format(""))
    assert load_config(file).engine == "openvino-f32"
    file.write_text(text.format('engine = "auto"'))
    assert load_config(file).engine == "auto"
    file.write_text(text.format('engine = "openvino-f64"'))
    with pytest.raises(MbrError, match="engine: Input should be 'openvino-f32', 'openvino-bf16'"):
        load_config(file)


def test_a_session_goes_on_with_its_engine_alone(box_video: Path, int8_bundle: Bundle, tmp_path: Path) -> None:
    """Live with int8 through the real processes; offline the same bytes; nothing else may touch that session."""
    live, offline = tmp_path / "live", tmp_path / "offline"
    bundle = ("--bundle", int8_bundle.path)
    done = mbr_live(
        "replay", box_video, "--out", live, *bundle, "--engine", "openvino-int8", "--speed", "4", "--drop", "0.1",
        "--plain",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = read_run(live / "box.run.json")
    assert kind_of(run.engine) == "openvino-int8"

    drops = ("--drops", live / "box.run.json")
    refused = mbr_live("batch", box_video, "--out", offline, *bundle, *drops, "--engine", "openvino-f32")
    assert refused.returncode == 2
    assert "were made with openvino-int8" in refused.stderr
    assert not list(offline.glob("*"))

    done = mbr_live("batch", box_video, "--out", offline, *bundle, *drops)
    assert done.returncode == 0, done.stderr
    assert read_run(offline / "box.run.json").engine == run.engine
    assert (offline / "box.labels.csv").read_bytes() == (live / "box.labels.csv").read_bytes()

    config = system_config(live, played(box_video)).model_copy(update={"bundle": int8_bundle.path})
    before = (live / "box.labels.csv").read_bytes()
    with pytest.raises(MbrError, match="were made with openvino-int8"):
        infer(config)
    assert (live / "box.labels.csv").read_bytes() == before


def test_one_folder_with_sessions_of_two_engines(box_video: Path, tmp_path: Path) -> None:
    done = mbr_live("batch", box_video, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    run = {**json.loads((tmp_path / "box.run.json").read_text()), "mode": "live"}
    (tmp_path / "box.run.json").write_text(json.dumps(run))
    (tmp_path / "other.run.json").write_text(json.dumps({**run, "engine": "torch 2.14.1 cpu f32"}))
    config: Config = system_config(tmp_path, played(box_video), played(box_video, name="other"))
    with pytest.raises(MbrError, match=r"several engines \(box.run.json: openvino-f32, other.run.json: torch\)"):
        infer(config)
