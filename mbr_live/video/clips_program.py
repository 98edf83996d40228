"""`mbr-live clips`: a clip of every bout, once for a folder, or again and again for a running system."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mbr_live.config import Config
from mbr_live.logs import Trouble
from mbr_live.processes import repeat
from mbr_live.progress import tracked
from mbr_live.sinks.bouts import BOUTS_SUFFIX
from mbr_live.sinks.label_log import LABELS_SUFFIX, logged_behaviours
from mbr_live.sinks.label_segments import closed_segments
from mbr_live.sinks.run_manifest import RUN_SUFFIX, read_run
from mbr_live.types import MbrError
from mbr_live.video.clips import CLIPS_FOLDER, clips_of, cut, is_recorded, recorded_until, recordings_in

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
    repeat(Follower(config).cut_new, FOLLOW_EVERY_S)


class Follower:
    """Cuts the clips of a running system."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cameras = [camera.name for camera in config.camera if camera.record != "off"]
        self._damaged: set[Path] = set()  # said once each, and not read again
        self._seen: dict[str, tuple[float, int]] = {}  # what there was of a camera when all clips of it were cut
        self._troubles = {name: Trouble(_log, f"{name}: clips") for name in self._cameras}

    def cut_new(self) -> None:
        """Cut what is missing of every camera; what keeps one from it keeps no other."""
        for camera in self._cameras:
            try:
                self._cut(camera)
            except (MbrError, OSError) as error:
                self._troubles[camera].is_now(str(error))
            else:
                self._troubles[camera].is_now("")

    def _cut(self, camera: str) -> None:
        out, settings = self._config.out, self._config.recording
        bouts = out / f"{camera}{BOUTS_SUFFIX}"
        if not bouts.exists():
            return
        # Where nothing is new, the bouts of six weeks and their files are not gone through again every few seconds.
        there = recorded_until(out, read_run(out / f"{camera}{RUN_SUFFIX}")), bouts.stat().st_size
        if there == self._seen.get(camera):
            return
        clips = clips_of(out, camera, settings.clips, settings.pre_s, settings.post_s)
        for path in cut(out, clips, out / CLIPS_FOLDER, self._damaged):
            _log.info("%s", path)
        self._seen[camera] = there
