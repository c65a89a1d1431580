"""Mask R-CNN and Mask Refining R-CNN for Keras 3 on TensorFlow."""

from importlib import import_module

__version__ = "0.1.0"

# Public names and where they live. Imported on first use: most of them need TensorFlow, which takes seconds.
_PUBLIC = {
    "Config": "mrcnn_tf.schema",
    "load_config": "mrcnn_tf.config",
    "CocoDataset": "mrcnn_tf.data.coco",
    "generate_shapes": "mrcnn_tf.data.shapes",
    "clean_file": "mrcnn_tf.postprocess.clean",
    "convert_masks": "mrcnn_tf.postprocess.mask_files",
    "detect_tiled": "mrcnn_tf.tiling",
    "evaluate_coco": "mrcnn_tf.evaluation.coco",
    "evaluate_model": "mrcnn_tf.evaluation.run",
    "huddled_metrics": "mrcnn_tf.evaluation.huddled",
    "export_saved_model": "mrcnn_tf.export.saved_model",
    "Detections": "mrcnn_tf.models.detections",
    "MaskRCNN": "mrcnn_tf.models.mask_rcnn",
    "MaskRefiningRCNN": "mrcnn_tf.models.mask_refining_rcnn",
    "import_model": "mrcnn_tf.importer",
    "inspect": "mrcnn_tf.inspection.inspect",
    "load_model": "mrcnn_tf.training.checkpoints",
    "write_page": "mrcnn_tf.inspection.page",
    "Client": "mrcnn_tf.serving",
    "train": "mrcnn_tf.training.train",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mrcnn_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
