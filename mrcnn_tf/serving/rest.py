"""TensorFlow Serving's REST interface."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any

import urllib3

from mrcnn_tf.serving import errors


class Rest:
    """One model, in one version or the newest.

    Args:
        url: `http(s)://host:8501/v1/models/NAME` or `.../versions/N`.
        timeout: seconds until the reply.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.timeout = timeout
        # A server that answers at all takes connections at once.
        limits = urllib3.Timeout(connect=min(timeout, 10), read=timeout)
        self.pool = urllib3.PoolManager(maxsize=32, retries=False, timeout=limits)

    def predict(self, signature: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The signature's outputs for each row of inputs.

        Raises:
            ServerUnavailable, ServingError, TimeoutError: see `Client.detect`.
        """
        instances = [{name: _to_json(value) for name, value in row.items()} for row in rows]
        # By row ("instances"), not by column ("inputs"): replies to the latter have every number on a line of its own.
        reply = self._ask(
            "POST", ":predict", json.dumps({"signature_name": signature, "instances": instances})
        )
        try:
            return [{name: _from_json(value) for name, value in row.items()} for row in reply["predictions"]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise errors.foreign(self.url, error) from error

    def states(self) -> list[str]:
        """Of the model's versions: START, LOADING, AVAILABLE, UNLOADING or END."""
        reply = self._ask("GET", "")
        try:
            return [version["state"] for version in reply["model_version_status"]]
        except (KeyError, TypeError) as error:
            raise errors.foreign(self.url, error) from error

    def close(self) -> None:
        """Closes the connections."""
        self.pool.clear()

    def _ask(self, method: str, suffix: str, body: str = "") -> Any:
        """The JSON of a reply of status 200."""
        try:
            reply = self.pool.request(
                method, self.url + suffix, body=body, headers={"Content-Type": "application/json"}
            )
        except (
            urllib3.exceptions.ConnectTimeoutError
        ) as error:  # a refused connection and an unknown host are, too
            raise errors.unreachable(self.url, error.__cause__ or error) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise errors.late(self.url, self.timeout) from error
        except urllib3.exceptions.ProtocolError as error:
            cause = error.args[-1]
            if isinstance(cause, TimeoutError):
                raise errors.late(self.url, self.timeout) from error
            if isinstance(cause, (ConnectionError, http.client.IncompleteRead)):
                raise errors.ServerUnavailable(f"{self.url}: the connection broke ({cause})") from error
            raise errors.ServingError(
                f"{self.url}: not an HTTP server; for gRPC's port give grpc://HOST:PORT/NAME"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise errors.ServingError(f"{self.url}: {error}") from error
        try:
            content = json.loads(reply.data)
        except ValueError:
            content = None
        if reply.status == 200 and content is not None:
            return content
        message = content.get("error") if isinstance(content, dict) else None
        if reply.status in (429, 502, 503):
            raise errors.ServerUnavailable(
                f"{self.url}: HTTP {reply.status}: {errors.first_line(message or reply.reason or '')}"
            )
        if reply.status == 413:
            raise errors.too_large(self.url, len(body))
        if not isinstance(message, str):
            start = errors.first_line(reply.data[:80].decode("utf-8", "replace"))
            raise errors.ServingError(
                f"{self.url}: not TensorFlow Serving's REST interface: HTTP {reply.status}, {start!r}"
            )
        raise errors.refused(self.url, message)


def _to_json(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    """The server encodes a tensor of strings in base64 where its name ends in `_bytes`: all of them or none."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [base64.b64decode(item["b64"]) for item in value]
    return value
