"""From the `[[trigger]]` tables of a configuration to rules: seconds become frames, and names become columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mbr_live.config import Config
from mbr_live.trigger_config import Trigger
from mbr_live.triggers.log import read_yoked
from mbr_live.triggers.machine import TriggerRule, Window
from mbr_live.types import RATE_FPS, MbrError


def trigger_rules(config: Config, behaviours: Sequence[str]) -> list[TriggerRule]:
    """The rules of `config` for a bundle with these `behaviours`; MbrError where they do not fit."""
    return [_rule(trigger, behaviours) for trigger in config.trigger]


def _rule(trigger: Trigger, behaviours: Sequence[str]) -> TriggerRule:
    def columns(names: Sequence[str]) -> tuple[int, ...]:
        for name in names:
            if name not in behaviours:
                raise MbrError(
                    f"trigger {trigger.name}: the bundle has no behaviour {name}, only {', '.join(behaviours)}. "
                    "Check the name, or the bundle."
                )
        return tuple(behaviours.index(name) for name in names)

    armed, sham = trigger.armed, trigger.sham
    daily = (armed.daily_from, armed.daily_to) if armed.daily_from is not None and armed.daily_to is not None else None
    window = Window(
        from_frame=_frames(armed.from_s),
        to_frame=None if armed.to_s is None else _frames(armed.to_s),
        daily=daily,
        timezone=armed.timezone,
    )
    return TriggerRule(
        trigger.name,
        trigger.camera,
        trigger.when,
        all_of=columns(trigger.all),
        any_of=columns(trigger.any),
        none_of=columns(trigger.none),
        lasting_frames=_frames(trigger.lasting_s or 0.0),
        on_s=trigger.on_s or trigger.max_on_s or 0.0,
        resume_frames=_frames(trigger.resume_within_s),
        cooldown_frames=_frames(trigger.cooldown_s),
        max_per_hour=trigger.max_per_hour,
        window=window,
        sham_probability=sham.probability if sham else 0.0,
        sham_seed=sham.seed if sham else 0,
        yoked=read_yoked(trigger.yoked.log, trigger.yoked.trigger) if trigger.yoked else (),
        dry_run=trigger.dry_run,
        outputs=trigger.outputs,
    )


def _frames(seconds: float) -> int:
    """Ticks that last at least `seconds`."""
    return math.ceil(seconds * RATE_FPS - 1e-6)
