"""Temporal models: streaming equals the whole sequence, nothing looks ahead, and offline models have no live form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.training.temporal import (  # noqa: E402
    LstmConfig,
    TcnConfig,
    TemporalConfig,
    TemporalModel,
    TransformerConfig,
    build_temporal,
)

tcns = st.builds(TcnConfig, channels=st.integers(2, 12), blocks=st.integers(1, 4), kernel=st.integers(2, 4))
lstms = st.builds(LstmConfig, channels=st.integers(2, 12), layers=st.integers(1, 3))
transformers = st.integers(1, 3).flatmap(
    lambda heads: st.builds(
        TransformerConfig,
        channels=st.sampled_from([2 * heads, 4 * heads]),
        heads=st.just(heads),
        layers=st.integers(1, 3),
        window_frames=st.integers(2, 12),
    )
)
live = tcns | lstms | transformers
KINDS = (TcnConfig(), LstmConfig(layers=2), TransformerConfig())
OFFLINE = (LstmConfig(offline=True), TransformerConfig(offline=True))
frames = st.integers(1, 40)
seeds = st.integers(0, 2**31)
few = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: TemporalConfig, seed: int) -> TemporalModel:
    torch.manual_seed(seed)
    return build_temporal(config, feature_dim=5, behaviours=3).eval()


@few
@given(live, frames, seeds)
def test_streaming_equals_the_whole_sequence(config: TemporalConfig, count: int, seed: int) -> None:
    model = build(config, seed)
    features = torch.randn(2, count, 5)
    state = torch.zeros(2, model.state_size)
    logits = []
    with torch.inference_mode():
        for frame in features.unbind(1):
            now, state = model.step(frame, state)
            logits.append(now)
        whole = model(features)
    assert state.shape == (2, model.state_size)
    torch.testing.assert_close(torch.stack(logits, 1), whole, atol=1e-5, rtol=0)


@few
@given(live, st.integers(2, 40), seeds, st.data())
def test_the_future_changes_nothing(config: TemporalConfig, count: int, seed: int, data: st.DataObject) -> None:
    model = build(config, seed)
    now = data.draw(st.integers(0, count - 2))
    features = torch.randn(1, count, 5)
    other = features.clone()
    other[:, now + 1 :] += 100.0
    with torch.inference_mode():
        before, after = model(features), model(other)
    torch.testing.assert_close(before[:, : now + 1], after[:, : now + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", KINDS)
def test_the_present_and_the_past_count(config: TemporalConfig) -> None:
    model = build(config, 1)
    features = torch.randn(1, 10, 5)
    for frame in (0, 9):
        other = features.clone()
        other[:, frame] += 1.0
        with torch.inference_mode():
            assert not torch.allclose(model(features)[:, 9], model(other)[:, 9])


@few
@given(tcns, seeds)
def test_memory_of_a_tcn_is_its_receptive_field_and_no_longer(config: TcnConfig, seed: int) -> None:
    model = build(config, seed)
    reach = 2 * (config.kernel - 1) * (2**config.blocks - 1)
    assert model.state_size == reach * config.channels
    assert model.receptive_field_frames == reach + 1
    features = torch.randn(1, reach + 2, 5)
    features.requires_grad_()
    model(features)[0, -1].sum().backward()
    touched = features.grad[0].abs().sum(1)
    assert touched[0] == 0.0  # the frame just outside of the receptive field


@pytest.mark.parametrize("config", KINDS)
def test_a_reset_state_forgets(config: TemporalConfig) -> None:
    model = build(config, 1)
    with torch.inference_mode():
        _, state = model.step(torch.randn(1, 5), torch.zeros(1, model.state_size))
        frame = torch.randn(1, 5)
        remembers, _ = model.step(frame, state)
        fresh, _ = model.step(frame, torch.zeros_like(state))
        alone = model(frame[:, None])[:, 0]
    assert not torch.allclose(remembers, fresh)
    torch.testing.assert_close(fresh, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", OFFLINE)
def test_an_offline_model_looks_both_ways_and_has_no_step(config: TemporalConfig) -> None:
    model = build(config, 1)
    assert not model.is_live
    features = torch.randn(1, 30, 5, requires_grad=True)
    model(features)[0, 15].sum().backward()
    touched = features.grad[0].abs().sum(1)
    assert touched[10] > 0 and touched[20] > 0
    with pytest.raises(TypeError, match="looks ahead"):
        model.step(torch.randn(1, 5), torch.zeros(1, 4))


def test_a_transformer_attends_to_its_window_and_no_further() -> None:
    model = build(TransformerConfig(layers=2, window_frames=5), 1)
    assert model.receptive_field_frames == 9
    features = torch.randn(1, 20, 5, requires_grad=True)
    model(features)[0, -1].sum().backward()
    touched = features.grad[0].abs().sum(1)
    assert touched[-10] == 0.0 and touched[-9] > 0.0


def test_heads_have_to_divide_the_channels() -> None:
    with pytest.raises(ValidationError, match="can not be divided among heads"):
        TransformerConfig(channels=10, heads=4)
