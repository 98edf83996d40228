"""Whether the pictures of a camera are as they should be: alarms, raised and cleared with patience.

Pure; times are the caller's. What makes labels meaningless (`mbr_live.stages.blindness`) also marks the labels
themselves; what is told here besides, a blurred picture, a camera that was moved or is slow, leaves the labels and
asks for a person.

*Moved*: the structure of the picture is laid on the reference's and shifted until it fits best (normalised
cross-correlation). Structure is what stays: the temporal median of half a minute, without the slow gradients of the
light, and blunted so that an animal that dominates the picture counts for no more than its area. *Blurred*: the energy
of the Laplacian (Pech-Pacheco et al. 2000) over the variance, so that a darker picture is not a softer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.stages.background import Grey
from mbr_live.stages.blindness import Blindness
from mbr_live.types import RATE_FPS, Image

LOOK_EVERY_S = 2.0
SHARPNESS_PX = 320  # width of the picture whose sharpness is judged
STRUCTURE_PX = 160  # width of the picture whose structure is
STRUCTURE_LOOKS = 15  # whose median is the picture without the animal
_SMOOTH_PX, _LIGHT_PX, _BLUNT = 1.5, 10.0, 2.0  # scale of noise; of gradients of the light; times the median
_REACH = 8  # the picture may be off by 1/8 of its sides, and still be recognised
BLURRED_SHARE, SHARP_SHARE = 0.4, 0.55  # of the reference's sharpness: raised below the one, cleared above the other
MOVED_SHARE, STAYED_SHARE = 0.02, 0.013  # of the picture's width
STRANGE, FAMILIAR = 0.5, 0.6  # likeness to the reference where it fits best
COMPARABLE = 0.8  # likeness of a reference to itself a moment later, from which it is one
SLOW_FPS, RIGHT_FPS = 0.9 * RATE_FPS, 0.95 * RATE_FPS
REFERENCE_LOOKS = 60  # whose median sharpness is the reference where the camera was not calibrated

AlarmName = Literal["blind", "blurred", "moved", "slow"]
_RAISE_AFTER_S: dict[AlarmName, float] = {"blind": 2.0, "blurred": 20.0, "moved": 20.0, "slow": 10.0}
_CLEAR_AFTER_S = 5.0
_BLIND_TEXTS: dict[Blindness, str] = {
    "dark": "the picture is black",
    "dazzled": "the picture is over-exposed",
    "flat": "the picture is of one even grey",
    "frozen": "the very same picture comes again and again",
}


Plane = NDArray[np.float32]
"""Structure of a picture, float32 [h, STRUCTURE_PX]."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How the camera's picture should be, from its calibration."""

    structure: Plane | None  # None where the picture has too little of it to tell whether it was moved
    sharpness: float


@dataclass(frozen=True, slots=True)
class _Alarm:
    """One condition over time."""

    raised: bool = False
    since_s: float | None = None  # since when it has been other than `raised`; None: it is not


@dataclass(frozen=True, slots=True)
class HealthState:
    """What is remembered of one camera."""

    alarms: Mapping[AlarmName, _Alarm] = field(default_factory=dict)
    texts: Mapping[AlarmName, str] = field(default_factory=dict)  # of all that is bad now, raised or not
    sharpnesses: tuple[float, ...] = ()  # of the first looks, until they are REFERENCE_LOOKS
    sharpness: float | None = None  # the reference
    greys: tuple[Grey, ...] = ()  # of the last STRUCTURE_LOOKS

    @property
    def raised(self) -> dict[str, str]:
        """Names and texts of the alarms that are raised."""
        return {name: self.texts.get(name, "") for name, alarm in self.alarms.items() if alarm.raised}


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of one picture."""

    sharpness: float
    grey: Grey  # [h, STRUCTURE_PX]


def look_at(pixels: Image) -> Look:
    """Look at a frame, uint8 [H, W, 3] RGB. Costs milliseconds: every LOOK_EVERY_S is often enough."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    fine = _narrowed(np.asarray(grey, dtype=np.uint8), SHARPNESS_PX)
    sharpness = float(cv2.Laplacian(fine, cv2.CV_32F).var()) / (float(fine.var()) + 25.0)
    return Look(sharpness, _narrowed(fine, STRUCTURE_PX))


def structure(greys: Sequence[Grey]) -> Plane:
    """What stays in several pictures, uint8 [h, w] each."""
    median = np.median(np.stack(greys), axis=0).astype(np.float32)
    smooth = cv2.GaussianBlur(median, (0, 0), _SMOOTH_PX)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), _LIGHT_PX)
    limit = _BLUNT * float(np.median(np.abs(detail))) + 0.5
    return np.asarray(np.clip(detail, -limit, limit), dtype=np.float32)


def fit(found: Plane, expected: Plane) -> tuple[float, float]:
    """How far the structure found is off the one expected, as a share of its width, and how alike they are there."""
    height, width = expected.shape
    rows, columns = height // _REACH, width // _REACH
    likeness = cv2.matchTemplate(found, expected[rows : height - rows, columns : width - columns], cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(likeness)
    return float(np.hypot(x - columns, y - rows)) / width, float(best)


def make_reference(pictures: Sequence[Image]) -> Reference:
    """The reference of pictures of half a minute, at least 4, each uint8 [H, W, 3] RGB."""
    looks = [look_at(pixels) for pixels in pictures]
    greys = [look.grey for look in looks]
    off, likeness = fit(structure(greys[1::2]), structure(greys[::2]))
    comparable = likeness >= COMPARABLE and off < STAYED_SHARE
    return Reference(structure(greys) if comparable else None, float(np.median([look.sharpness for look in looks])))


def _narrowed(grey: Grey, width: int) -> Grey:
    size = (width, max(1, round(grey.shape[0] * width / grey.shape[1])))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def assess(
    now_s: float,
    look: Look | None,
    blind: Blindness,
    source_fps: float | None,
    against: Reference | None,
    state: HealthState,
) -> HealthState:
    """The state after one look; call it every LOOK_EVERY_S while frames come.

    `look` is None while the picture shows nothing; `source_fps` where the rate is not known, or not asked for.
    """
    texts: dict[AlarmName, str] = {}
    known: set[AlarmName] = {"blind"}  # what can be judged now; an alarm of which that is not so stays as it is
    if blind:
        texts["blind"] = _BLIND_TEXTS[blind]
    if source_fps is not None:
        known.add("slow")
        if source_fps < (RIGHT_FPS if _is_raised("slow", state) else SLOW_FPS):
            texts["slow"] = f"the camera delivers {source_fps:.1f} frames a second, {RATE_FPS} are needed"
    if look is not None:
        state = _seen(look, against, state)
        if state.sharpness is not None:
            known.add("blurred")
        if against is None or len(state.greys) == STRUCTURE_LOOKS:
            known.add("moved")
        texts |= _blurred(look, state) | _moved(against, state)
    alarms = dict(state.alarms)
    for name in known:
        alarms[name] = _next(alarms.get(name, _Alarm()), name in texts, now_s, _RAISE_AFTER_S[name])
    kept = {name: text for name, text in state.texts.items() if alarms[name].raised}
    return replace(state, alarms=alarms, texts={**kept, **texts})


def taken_up(raised: Mapping[str, str]) -> HealthState:
    """The state of a process that goes on with these alarms, names and texts: it will tell when they are over."""
    texts: dict[AlarmName, str] = {name: raised[name] for name in get_args(AlarmName) if name in raised}
    return HealthState({name: _Alarm(raised=True) for name in texts}, texts)


def opened_anew(state: HealthState) -> HealthState:
    """The state after the camera was lost: it may be another one now."""
    return replace(state, greys=())


def _seen(look: Look, against: Reference | None, state: HealthState) -> HealthState:
    """One more look. The reference of sharpness is the calibration's, or the median of the first two minutes."""
    state = replace(state, greys=(*state.greys, look.grey)[-STRUCTURE_LOOKS:])
    if against is not None:
        return replace(state, sharpness=against.sharpness)
    if state.sharpness is not None:
        return state
    first = (*state.sharpnesses, look.sharpness)
    if len(first) < REFERENCE_LOOKS:
        return replace(state, sharpnesses=first)
    return replace(state, sharpnesses=(), sharpness=float(np.median(first)))


def _blurred(look: Look, state: HealthState) -> dict[AlarmName, str]:
    least = SHARP_SHARE if _is_raised("blurred", state) else BLURRED_SHARE
    if state.sharpness is None or look.sharpness >= least * state.sharpness:
        return {}
    return {"blurred": f"the picture has {look.sharpness / state.sharpness:.0%} of its usual sharpness"}


def _moved(against: Reference | None, state: HealthState) -> dict[AlarmName, str]:
    if against is None or against.structure is None or len(state.greys) < STRUCTURE_LOOKS:
        return {}
    if state.greys[-1].shape != against.structure.shape:
        return {"moved": "the picture has another shape than the reference: calibrate the camera again"}
    raised = _is_raised("moved", state)
    off, likeness = fit(structure(state.greys), against.structure)
    if likeness < (FAMILIAR if raised else STRANGE):
        return {"moved": "the picture does not look like the reference: moved, or another camera"}
    if off > (STAYED_SHARE if raised else MOVED_SHARE):
        return {"moved": f"the picture is off the reference by {off:.1%} of its width"}
    return {}


def _is_raised(name: AlarmName, state: HealthState) -> bool:
    return state.alarms.get(name, _Alarm()).raised


def _next(alarm: _Alarm, bad: bool, now_s: float, raise_after_s: float) -> _Alarm:
    if bad == alarm.raised:
        return _Alarm(alarm.raised)
    since_s = now_s if alarm.since_s is None else alarm.since_s
    patience_s = _CLEAR_AFTER_S if alarm.raised else raise_after_s
    return _Alarm(bad) if now_s - since_s >= patience_s else _Alarm(alarm.raised, since_s)
