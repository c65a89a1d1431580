"""Shards as the Model Garden writes them, by TensorFlow alone: an oracle for reading and writing.

The features are those of official/vision/data/create_coco_tf_record.py and tfrecord_lib.py of tensorflow/models, and
of its decoder, official/vision/dataloaders/tf_example_decoder.py.
"""

import hashlib
import io

import numpy as np
import tensorflow as tf
from PIL import Image


def ints(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def texts(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def features(image_id, image, objects, *, named=True):
    """Of an image (uint8 `[H, W, 3]`) and objects `(label, name, box (y1, x1, y2, x2), mask bool [H, W], crowd)`."""
    height, width = image.shape[:2]
    encoded = png(image)
    out = {
        "image/height": ints(height),
        "image/width": ints(width),
        "image/filename": texts(f"{image_id}.png".encode()),
        "image/source_id": texts(str(image_id).encode()),
        "image/key/sha256": texts(hashlib.sha256(encoded).hexdigest().encode()),
        "image/encoded": texts(encoded),
        "image/format": texts(b"jpg"),  # whatever it is
    }
    if objects:
        labels, names, boxes, masks, crowd = zip(*objects, strict=True)
        boxes = np.array(boxes, float)
        out["image/object/bbox/ymin"] = floats(*boxes[:, 0] / height)
        out["image/object/bbox/xmin"] = floats(*boxes[:, 1] / width)
        out["image/object/bbox/ymax"] = floats(*boxes[:, 2] / height)
        out["image/object/bbox/xmax"] = floats(*boxes[:, 3] / width)
        out["image/object/class/label"] = ints(*labels)
        if named:
            out["image/object/class/text"] = texts(*(name.encode() for name in names))
        out["image/object/is_crowd"] = ints(*crowd)
        out["image/object/area"] = floats(*(float(mask.sum()) for mask in masks))
        out["image/object/mask"] = texts(*(png(mask.astype(np.uint8)) for mask in masks))
    return out


def write(path, all_features):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in all_features:
            example = tf.train.Example(features=tf.train.Features(feature=each))
            writer.write(example.SerializeToString())
    return path


def decode(data):
    """An example as the Model Garden's decoder sees it: boxes, classes, crowd, areas and masks, dense."""
    numbers = ["bbox/ymin", "bbox/xmin", "bbox/ymax", "bbox/xmax", "area"]
    spec = {f"image/object/{name}": tf.io.VarLenFeature(tf.float32) for name in numbers}
    for name in ("class/label", "is_crowd"):
        spec[f"image/object/{name}"] = tf.io.VarLenFeature(tf.int64)
    for name in ("class/text", "mask", "mask_counts"):
        spec[f"image/object/{name}"] = tf.io.VarLenFeature(tf.string)
    for name in ("encoded", "source_id", "filename", "format", "key/sha256"):
        spec[f"image/{name}"] = tf.io.FixedLenFeature((), tf.string)
    for name in ("height", "width"):
        spec[f"image/{name}"] = tf.io.FixedLenFeature((), tf.int64)
    out = tf.io.parse_single_example(data, spec)
    dense = {k: tf.sparse.to_dense(v) if isinstance(v, tf.SparseTensor) else v for k, v in out.items()}
    found = {k.removeprefix("image/").removeprefix("object/"): v.numpy() for k, v in dense.items()}
    found["boxes"] = np.stack([found[name] for name in numbers[:4]], axis=-1)
    found["masks"] = [tf.io.decode_png(m, channels=1).numpy()[..., 0] for m in found["mask"].tolist()]
    return found
