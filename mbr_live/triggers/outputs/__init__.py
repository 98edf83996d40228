"""The media that triggers go out on, one module each. A medium's package is imported only where one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbr_live.trigger_config import (
    AnyOutput,
    GpioOutput,
    LslOutput,
    MqttOutput,
    OpenEphysOutput,
    OscOutput,
    SerialOutput,
    WebhookOutput,
    ZeromqOutput,
)
from mbr_live.triggers.outputs.protocol import LineOutlet, Messenger, unusable
from mbr_live.types import MbrError


def make_outlets(outputs: Sequence[AnyOutput], session: str) -> tuple[dict[str, LineOutlet], dict[str, Messenger]]:
    """The lines and the messengers by name, not yet open. MbrError where a package or a secret is missing."""
    boxes: dict[str, Any] = {}
    lines: dict[str, LineOutlet] = {}
    messengers: dict[str, Messenger] = {}
    for output in outputs:
        try:
            line = _line(output, boxes)
            if line is not None:
                lines[output.name] = line
            else:
                messengers[output.name] = _messenger(output, session)
        except ImportError as error:
            raise MbrError(
                f"output {output.name}: kind {output.kind} needs the package {error.name}, which is not installed. "
                "Run: pip install 'mbr-live[outputs]'"
            ) from error
    return lines, messengers


def _line(output: AnyOutput, boxes: dict[str, Any]) -> LineOutlet | None:
    match output:
        case SerialOutput():
            from mbr_live.triggers.outputs.serial_ttl import SerialBox, SerialLine

            box = boxes.setdefault(output.port, SerialBox(output.port, output.baud))
            return SerialLine(box, output.name, output.line)
        case GpioOutput():
            from mbr_live.triggers.outputs.gpio import GpioLine

            return GpioLine(output.name, output.pin, active_high=output.active_high)
        case OpenEphysOutput():
            from mbr_live.triggers.outputs.open_ephys import OpenEphysLine

            return OpenEphysLine(output.name, output.host, output.port, output.line)
    return None


def _messenger(output: AnyOutput, session: str) -> Messenger:
    match output:
        case LslOutput():
            from mbr_live.triggers.outputs.lsl import LslMarkers

            return LslMarkers(output.name, output.stream, session)
        case MqttOutput():
            from mbr_live.triggers.outputs.mqtt import MqttMessages

            password = _secret(output.name, output.password_file)
            return MqttMessages(
                output.name, output.host, output.port, output.topic,
                username=output.username, password=password, tls=output.tls,
            )  # fmt: skip
        case WebhookOutput():
            from mbr_live.triggers.outputs.webhook import Webhook

            return Webhook(output.name, output.url, output.timeout_s, _secret(output.name, output.token_file))
        case OscOutput():
            from mbr_live.triggers.outputs.osc import OscMessages

            return OscMessages(output.name, output.host, output.port, output.address)
        case ZeromqOutput():
            from mbr_live.triggers.outputs.zeromq import ZeromqMessages

            return ZeromqMessages(output.endpoint)
    raise TypeError(output)


def _secret(name: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        found = f"({error.strerror})"
        raise unusable(name, f"the file {path} cannot be read", found, "Check its name and rights.") from error
