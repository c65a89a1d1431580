"""What can go wrong between client and server, said the same way over REST and gRPC."""

from __future__ import annotations


class ServingError(RuntimeError):
    """The server refused a request, or its reply is not one of a model exported by this package."""


class ServerUnavailable(ServingError):
    """The server cannot be reached or is too busy: the same request may succeed later."""


class ImageError(ServingError):
    """One image cannot be used; the message names it."""


def unreachable(url: str, reason: object) -> ServerUnavailable:
    """No connection."""
    return ServerUnavailable(f"{url}: no connection ({reason}); is the server running, and is this its port?")


def late(url: str, timeout: float) -> TimeoutError:
    """No reply in time."""
    return TimeoutError(
        f"{url}: no reply within {timeout:g} s; give the client a longer timeout or a smaller batch_size"
    )


def too_large(url: str, size: int) -> ServingError:
    """A request that the server, or a proxy before it, does not take."""
    return ServingError(
        f"{url}: a request of {size / 1e6:.1f} MB is larger than the server or a proxy before it takes; "
        "send smaller images, or give the client a smaller batch_size"
    )


def refused(url: str, message: str) -> ServingError:
    """An error that TensorFlow Serving itself reports, with what to do about the usual ones."""
    message = first_line(message)
    hint = ""
    if message.startswith("Servable not found"):
        hint = "; the server has loaded no model of this name and version (Client.wait_until_ready waits for one)"
    elif "signature" in message.lower() and message.endswith(("not found.", "not found in signature def")):
        hint = "; this model was not exported by mrcnn_tf.export_saved_model, or by an older one"
    elif message.startswith("Task size"):
        hint = "; give the client a batch_size of at most the server's max_batch_size"
    return ServingError(f"{url}: {message}{hint}")


def foreign(url: str, error: Exception) -> ServingError:
    """A reply in which something is missing."""
    return ServingError(
        f"{url}: not the reply of a model that mrcnn_tf.export_saved_model wrote ({type(error).__name__}: {error})"
    )


def first_line(message: str) -> str:
    """TensorFlow's errors may go on for pages of graph nodes."""
    return (message.strip().splitlines() or ["no reason given"])[0][:300]
