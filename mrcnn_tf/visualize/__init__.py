"""Pictures of results: instances on images, sheets beside the truth, curves of a run. No TensorFlow."""

from mrcnn_tf.visualize.curves import plot_history, plot_losses, plot_metrics
from mrcnn_tf.visualize.draw import color, draw
from mrcnn_tf.visualize.sheet import save, sheet, validation_sheet

__all__ = [
    "color",
    "draw",
    "plot_history",
    "plot_losses",
    "plot_metrics",
    "save",
    "sheet",
    "validation_sheet",
]
