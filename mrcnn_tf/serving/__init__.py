"""The client of a model behind TensorFlow Serving; over REST it needs neither TensorFlow nor Keras."""

from mrcnn_tf.serving.client import Client
from mrcnn_tf.serving.errors import ImageError, ServerUnavailable, ServingError

__all__ = ["Client", "ImageError", "ServerUnavailable", "ServingError"]
