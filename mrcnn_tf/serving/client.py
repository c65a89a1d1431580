"""Detections from a server, as `model.detect` gives them."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.models.detections import Detections
from mrcnn_tf.serving.errors import ImageError, ServerUnavailable, ServingError, foreign

Image: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.uint8]

SIGNATURE = "compact"
LONGEST_PAUSE = 30.0  # between two attempts, in seconds
URL = re.compile(
    r"(?:(?P<rest>https?://[^/?#]+.*/v1/models)|grpc://(?P<target>[^/?#]+))"
    r"/(?P<name>[^/:?#]+)(?:/versions/(?P<version>\d+))?"
)
logger = logging.getLogger(__name__)


class Client:
    """Detects on a server as `model.detect` does in this process.

    Several threads may use one client; they share its connections.

    Args:
        url: `http(s)://host:8501/v1/models/NAME` for REST, `grpc://host:8500/NAME` for gRPC (which needs
            `pip install "mrcnn_tf[serving]"`), either one with `/versions/N` behind it for that version instead of
            the newest.
        timeout: seconds until the reply to one request, the model's work included.
        retries: how often a request is sent again where the server cannot be reached or is too busy. What cannot
            succeed later is not tried again.
        backoff: seconds before the second attempt; twice as many before each further one, at most 30, less up to
            half of them by chance, so that many clients do not come back at once.
        batch_size: images in one request at most. A server that batches refuses more than its `max_batch_size`.

    Raises:
        ValueError: for a URL of another form, or a number that makes no sense.
        ImportError: for `grpc://` without what it needs.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, retries: int = 3, backoff: float = 0.5, batch_size: int = 4
    ) -> None:
        parts = URL.fullmatch(url)
        if not parts:
            raise ValueError(
                "url must be http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME, with /versions/N behind it "
                f"if need be, not {url!r}"
            )
        if timeout <= 0 or retries < 0 or backoff < 0 or batch_size < 1:
            raise ValueError(
                f"timeout ({timeout}) must be above 0, retries ({retries}) and backoff ({backoff}) not below 0, "
                f"batch_size ({batch_size}) at least 1"
            )
        self.url = url
        self.retries = retries
        self.backoff = backoff
        self.batch_size = batch_size
        self._server: Any
        if parts["rest"]:
            from mrcnn_tf.serving.rest import Rest

            self._server = Rest(url, timeout)
        else:
            try:
                from mrcnn_tf.serving.rpc import Grpc
            except ImportError as error:
                raise ImportError(
                    f"{url}: {error}; gRPC needs more packages: pip install 'mrcnn_tf[serving]'"
                ) from error
            version = parts["version"]
            self._server = Grpc(parts["target"], parts["name"], int(version) if version else None, timeout)

    @overload
    def detect(
        self, images: Image, score_threshold: float | None = ..., iou_threshold: float | None = ...
    ) -> Detections: ...

    @overload
    def detect(
        self,
        images: list[Any],
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
    ) -> list[Detections]: ...

    @overload
    def detect(
        self,
        images: list[Any],
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        *,
        on_error: Literal["return"],
    ) -> list[Detections | ImageError]: ...

    def detect(
        self,
        images: Any,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        *,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Any:
        """Instances of one image or of several, in coordinates of the original, upright images.

        Args:
            images: the path of a JPEG or PNG file, the bytes of one, a uint8 array `[h, w, 3]` in RGB order, or any
                mixture of these in a list. Files travel as they are, arrays as PNG: that has no loss, where JPEG
                would change the pixels and with them what is found.
            score_threshold: leaves out detections up to this score, in [0, 1], instead of up to the model's own.
            iou_threshold: of the suppression of overlapping detections, in [0, 1], instead of the model's own.
            on_error: `"raise"`, or `"return"` for an `ImageError` in the place of each image that cannot be used,
                beside the results of the others.

        Returns:
            A `Detections`, or a list of them for a list.

        Raises:
            ImageError: the client cannot read an image, or the server not decode it.
            ServerUnavailable: the server could not be reached or was too busy, at the last attempt as well.
            ServingError: the server refused the request: it has no such model, version or signature, or the
                request is too large.
            TimeoutError: no reply in time.
            ValueError: a threshold outside [0, 1], or an array that is not such an image.
        """
        thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
        for name, value in thresholds.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", not {on_error!r}')
        single = not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) != 4
        images = [images] if single else list(images)
        # To the exported signature, a number below 0 is None.
        settings = {name: -1.0 if value is None else float(value) for name, value in thresholds.items()}
        results: list[Any] = []
        for start in range(0, len(images), self.batch_size):
            named = [
                (_name(images[i], "the image" if single else f"image {i} of the list"), images[i])
                for i in range(start, min(start + self.batch_size, len(images)))
            ]
            results += self._detect(named, settings, on_error)
        return results[0] if single else results

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Returns as soon as the server has loaded the model.

        Args:
            timeout: seconds to wait for it.

        Raises:
            TimeoutError: it has not, with the last reason.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                states = self._server.states()
                if "AVAILABLE" in states:
                    return
                reason = f"{self.url}: {', '.join(states)}"
            except (ServingError, TimeoutError) as error:
                reason = str(error)
            if time.monotonic() >= end:
                raise TimeoutError(f"not ready after {timeout:g} s: {reason}")
            time.sleep(0.2)

    def close(self) -> None:
        """Closes the connections."""
        self._server.close()

    def __enter__(self) -> Client:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def _detect(self, named: list[tuple[str, Any]], settings: dict[str, float], on_error: str) -> list[Any]:
        """One request: for each image a `Detections` or, with `on_error="return"`, an `ImageError`."""

        def attempt(function: Callable[[Any, str], Any], value: Any, name: str) -> Any:
            try:
                return function(value, name)
            except ImageError as error:
                if on_error == "raise":
                    raise
                return error

        results = [attempt(_encode, image, name) for name, image in named]
        sent = [i for i, data in enumerate(results) if isinstance(data, bytes)]
        if sent:
            rows = self._predict([{"image_bytes": results[i], **settings} for i in sent])
            try:
                for i, row in zip(sent, rows, strict=True):
                    results[i] = attempt(detections_of_reply, row, named[i][0])
            except (KeyError, TypeError, ValueError) as error:
                raise foreign(self.url, error) from error
        return results

    def _predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for attempt in range(self.retries):
            try:
                return self._server.predict(SIGNATURE, rows)
            except ServerUnavailable as error:
                pause = min(self.backoff * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)
                logger.warning("%s; trying again in %.1f s", error, pause)
                time.sleep(pause)
        return self._server.predict(SIGNATURE, rows)


def _name(image: Any, otherwise: str) -> str:
    return str(image) if isinstance(image, (str, os.PathLike)) else otherwise


def _encode(image: Any, name: str) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read: {error.strerror}") from error
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"{name} must be a path, the bytes of a file or uint8 [height, width, 3] in RGB order, "
            f"not {image.dtype} {image.shape}"
        )
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def detections_of_reply(row: dict[str, Any], name: str) -> Detections:
    """The outputs of the signature for one image."""
    status = _text(row["status"])
    if status != "ok":
        raise ImageError(f"{name}: {status}")
    count = int(row["num_detections"])
    masks = [np.frombuffer(data, np.uint8) for data in row["detection_masks_bytes"][:count]]
    side = math.isqrt(len(masks[0])) if masks else 0
    return Detections(
        image_size=tuple(row["image_size"]),
        boxes=np.array(row["detection_boxes"][:count]),
        scores=row["detection_scores"][:count],
        class_ids=row["detection_classes"][:count],
        category_ids=row["detection_category_ids"][:count],
        class_names=[_text(name) for name in row["detection_class_names"][:count]],
        masks=np.reshape(masks, (count, side, side)) / np.float32(255),
    )


def _text(value: str | bytes) -> str:
    """Strings of a tensor are bytes over gRPC."""
    return value.decode() if isinstance(value, bytes) else value
