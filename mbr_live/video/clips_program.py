"""`mbr-live clips`: a clip of every bout, once for a folder, or again and again for a running system."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbr_live.config import Config
from mbr_live.label_log import LABELS_SUFFIX, logged_behaviours
from mbr_live.label_segments import closed_segments
from mbr_live.logs import Trouble
from mbr_live.processes import repeat
from mbr_live.progress import tracked
from mbr_live.types import MbrError
from mbr_live.video.clips import CLIPS_FOLDER, clips_of, cut, is_recorded, recordings_in

FOLLOW_EVERY_S = 10.0

_log = logging.getLogger(__name__)


def clips_program(folder: Path, out: Path, behaviours: list[str], *, pre_s: float, post_s: float) -> None:
    """Cut all clips of a folder of logs, with a progress bar."""
    names = recordings_in(folder)
    _check_known(behaviours, folder, names)
    recorded = [name for name in names if is_recorded(folder, name)]
    if not recorded:
        raise MbrError(
            f"clips: {folder} holds no pictures: {', '.join(names)} not recorded. Set record = 'lossless' or 'h264' "
            "in the configuration of the live run."
        )
    wanted = [clip for name in recorded for clip in clips_of(folder, name, behaviours, pre_s, post_s)]
    missing = sum(not (out / clip.file_name).exists() for clip in wanted)
    written = sum(1 for _ in tracked(cut(folder, wanted, out, set()), "clips", missing))
    print(f"{written} new clips in {out}; {len(wanted)} bouts")
    for name in sorted({*names} - {*recorded}):
        print(f"{name} was not recorded: no clips")


def _check_known(behaviours: Sequence[str], folder: Path, recordings: Sequence[str]) -> None:
    logs = (folder / f"{name}{LABELS_SUFFIX}" for name in recordings)
    known = {behaviour for log in logs if log.exists() or closed_segments(log) for behaviour in logged_behaviours(log)}
    unknown = [name for name in behaviours if name not in known]
    if unknown:
        of, only = ", ".join(unknown), ", ".join(sorted(known))
        raise MbrError(f"clips: {folder} holds no labels of {of}, only of {only}. Check the name.")


def follow_clips_program(config: Config) -> None:
    """Cut the clips of a running system as its recordings are closed, until told to stop."""
    wanted = config.recording.clips
    if not wanted:
        raise MbrError("clips: the configuration names no behaviour. Set recording.clips, such as ['grooming'].")
    damaged: set[Path] = set()  # said once each, and not read again
    troubles = {camera.name: Trouble(_log, f"{camera.name}: clips") for camera in config.camera}
    repeat(lambda: _cut_new(config, damaged, troubles), FOLLOW_EVERY_S)


def _cut_new(config: Config, damaged: set[Path], troubles: Mapping[str, Trouble]) -> None:
    settings = config.recording
    for camera in config.camera:
        if camera.record == "off":
            continue
        try:
            clips = clips_of(config.out, camera.name, settings.clips, settings.pre_s, settings.post_s)
            for path in cut(config.out, clips, config.out / CLIPS_FOLDER, damaged):
                _log.info("%s", path)
        except (MbrError, OSError) as error:
            troubles[camera.name].is_now(str(error))
        else:
            troubles[camera.name].is_now("")
