"""HTTP POST of every trigger as JSON, confirmed by any 2xx."""

from __future__ import annotations

import logging

import httpx

from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage, unusable

logging.getLogger("httpx").setLevel(logging.WARNING)  # a URL may hold a secret; it has no place in a log
_WORTH_ANOTHER_TRY = (408, 425, 429)  # of the 4xx


class Webhook:
    """The header `Idempotency-Key` holds the message's `id`, for receivers that must not take one twice."""

    durable = True

    def __init__(self, name: str, url: str, timeout_s: float, token: str | None) -> None:
        self._name, self._url, self._timeout_s = name, url, timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client: httpx.Client | None = None

    def open(self) -> None:
        if self._client is not None:
            return
        client = httpx.Client(timeout=self._timeout_s, headers=self._headers)
        try:
            client.head(self._url)  # whatever it answers: it is there
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            client.close()
            raise unusable(
                self._name, f"{self._url} cannot be reached", f"({error})", "Start the receiver, and check the URL."
            ) from error
        self._client = client

    def send(self, message: TriggerMessage) -> bool:
        if self._client is None:
            raise DeliveryError("not connected")
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.id}
        try:
            answer = self._client.post(self._url, content=message.model_dump_json(), headers=headers)
        except httpx.HTTPError as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return True
        final = answer.is_client_error and answer.status_code not in _WORTH_ANOTHER_TRY
        raise DeliveryError(f"HTTP {answer.status_code}", final=final)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
