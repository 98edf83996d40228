"""Messages to an MQTT broker, QoS 1: confirmed when the broker has taken them."""

from __future__ import annotations

import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage, unusable

CONNECT_WITHIN_S = 5.0
CONFIRM_WITHIN_S = 5.0


class MqttMessages:
    """`<topic>/<camera>/<trigger>`; `<topic>/status` is a retained `online`, and `offline` when this process dies."""

    durable = True

    def __init__(
        self, name: str, host: str, port: int, topic: str, *, username: str | None, password: str | None, tls: bool
    ) -> None:
        self._name, self._host, self._port, self._topic = name, host, port, topic
        self._username, self._password, self._tls = username, password, tls
        self._client: mqtt.Client | None = None
        self._why = ""
        self._waiting: tuple[str, mqtt.MQTTMessageInfo] | None = None  # after a reconnect paho itself sends it again

    def open(self) -> None:
        if self._client is not None:
            return
        self._why = ""
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._tls:
            client.tls_set()
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.reconnect_delay_set(1, 10)
        try:
            client.connect(self._host, self._port, keepalive=10)
        except (OSError, ValueError) as error:
            raise self._unreachable(str(error)) from error
        client.loop_start()
        deadline_s = time.monotonic() + CONNECT_WITHIN_S
        while not client.is_connected() and not self._why and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if not client.is_connected():
            client.disconnect()
            client.loop_stop()
            raise self._unreachable(self._why or f"no answer within {CONNECT_WITHIN_S:.0f} s")
        self._client = client

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._why = str(reason)
        else:
            client.publish(f"{self._topic}/status", "online", qos=1, retain=True)

    def send(self, message: TriggerMessage) -> bool:
        if self._client is None or not self._client.is_connected():
            raise DeliveryError(f"not connected to the broker {self._host}:{self._port}")
        if self._waiting is None or self._waiting[0] != message.id:
            topic = f"{self._topic}/{message.camera}/{message.trigger}"
            info = self._client.publish(topic, message.model_dump_json(), qos=1)
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                raise DeliveryError(mqtt.error_string(info.rc))
            self._waiting = (message.id, info)
        self._waiting[1].wait_for_publish(CONFIRM_WITHIN_S)
        if not self._waiting[1].is_published():
            raise DeliveryError(f"the broker {self._host}:{self._port} has not confirmed it")
        self._waiting = None
        return True

    def close(self) -> None:
        client, self._client, self._waiting = self._client, None, None
        if client is not None:
            if client.is_connected():
                # A clean goodbye discards the last will, so it is said in so many words.
                client.publish(f"{self._topic}/status", "offline", qos=1, retain=True).wait_for_publish(1.0)
            client.disconnect()
            client.loop_stop()

    def _unreachable(self, why: str) -> Exception:
        return unusable(
            self._name, f"the MQTT broker {self._host}:{self._port} cannot be used", f"({why})",
            "Start the broker, and check host, port, user name and password.",
        )  # fmt: skip
