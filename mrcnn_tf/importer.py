"""`mrcnn import`: another project's weights as a model of this one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mrcnn_tf.build import build_model
from mrcnn_tf.config import load_config, make_config, override
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.tables import some
from mrcnn_tf.weights import detectron2, keras_models, maskrcnn_benchmark, model_garden, torchvision
from mrcnn_tf.weights.coco_classes import coco_classes
from mrcnn_tf.weights.files import read_tensors
from mrcnn_tf.weights.transfer import LoadReport, transfer

SOURCES: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "maskrcnn-benchmark": maskrcnn_benchmark,
    "model-garden": model_garden,
    "keras": keras_models,
}


def import_model(
    path: str | Path,
    source: str,
    *,
    classes: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> tuple[MaskRCNN, LoadReport]:
    """Reads a Mask R-CNN, or the backbone that a classifier of images is, into a model of this project.

    Args:
        path: the file, see `mrcnn_tf.weights.files.read_tensors`.
        source: whose it is, one of `SOURCES`.
        classes: a text file with the name of each class, in the model's order, a line each; or a COCO annotation file,
            whose categories, by rising id, are the classes. Not needed for models of COCO's 80 or 90.
        config: a config whose `model` section is the file's architecture, where it cannot be told from the tensors.
        overrides: of that section, such as `"model.backbone.epsilon=1e-5"`.
        allow_missing, allow_unexpected: see `transfer`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of that project, not whole, or of another architecture than the config says; or there is
            no name for each class. `ConfigError` for the config.
    """
    name = Path(path).name
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; it must be one of {', '.join(SOURCES)}")
    strange = [text for text in overrides if not text.startswith("model.")]
    if strange:
        raise ValueError(f"{strange[0]}: only keys of the model can be set here, such as model.min_size=640")
    reader = SOURCES[source]
    tensors = reader.tidy(getattr(reader, "read", read_tensors)(path))
    if not reader.recognised(tensors):
        fits = [other for other, module in SOURCES.items() if module.recognised(module.tidy(tensors))]
        hint = f"; try --from {fits[0]}" if fits else f"; it holds {', '.join(list(tensors)[:3])}, ..."
        raise ValueError(f"{path}: has no names of {source}'s Mask R-CNN or ResNets{hint}")
    try:
        # Names of a part that is missing are looked up by their full name.
        section, count = reader.settings(tensors), reader.class_count(tensors)
    except KeyError as error:
        raise ValueError(
            f"{path}: has no tensor {error.args[0]}, so it is not a whole Mask R-CNN with a feature pyramid"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if config is not None:
        chosen = load_config(config, list(overrides))
        for key in ("depth", "groups"):
            theirs, ours = section["backbone"].get(key, 1), getattr(chosen.model.backbone, key)
            if theirs != ours:
                raise ValueError(
                    f"{path}: its backbone has {key} {theirs}, but {config} says {ours}; leave --config out"
                )
    else:
        values = override({"model": section}, list(overrides))
        # Nothing is trained here; a config's canvas for that must hold images of the model's size, whatever it is.
        canvas = values["model"].get("canvas") or [2**15, 2**15]
        chosen = make_config({**values, "data": {"canvas": canvas}}, source=name)
    ids, names = class_list(path, count, classes)
    model = build_model(chosen, names, ids)
    try:
        moves = reader.moves(model, tensors)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: is of another architecture than the config or the overrides say ({error}); leave those out, or "
            "give the file's own"
        ) from None
    report = transfer(
        tensors,
        moves,
        model.weights,
        source=name,
        ignored=reader.ignored,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    return model, report


def class_list(
    path: str | Path, count: int | None, classes: str | Path | None
) -> tuple[list[int], list[str]]:
    """Id and name of each class of a file's model; errors as in `import_model`. `count`: None where any will do."""
    if classes is None:
        known = {1: "none yet"} if count is None else coco_classes(count)
        if known is None:
            raise ValueError(
                f"{path}: has {count} classes, which are not COCO's; give their names with --classes, a text file with "
                "a name a line, or the annotation file that it was trained on"
            )
        return list(known), list(known.values())
    try:
        text = Path(classes).read_text(encoding="utf-8")
        if text.lstrip().startswith(("{", "[")):
            categories = sorted(json.loads(text)["categories"], key=lambda category: category["id"])
            ids, names = [c["id"] for c in categories], [c["name"] for c in categories]
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
            ids = list(range(1, len(names) + 1))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{classes}: is neither a text file with a class's name a line nor a COCO annotation file ({error!r})"
        ) from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{classes}: names {some(twice)} twice")
    if not names or (count is not None and len(names) != count):
        raise ValueError(f"{classes}: names {len(names)} classes, but {path} has {count or 'some'}")
    return ids, names


def describe(model: MaskRCNN) -> str:
    """What a model is, with the choices that no tensor tells of, in three lines."""
    pixels, settings = model.normalize, model.settings
    canvas = f", on {model.canvas[0]} x {model.canvas[1]}" if model.canvas else ""
    epsilon = model.backbone.stem.epsilon
    return (
        f"ResNet-{model.backbone.depth}-FPN, dialect {model.backbone.dialect}, epsilon {epsilon:g}, "
        f"{len(model.class_names)} classes\n"
        f"images of {model.min_size} pixels, at most {model.max_size}{canvas}; {'BGR' if pixels.bgr else 'RGB'} less "
        f"{list(pixels.mean)} over {list(pixels.std)}\n"
        f"RoIAlign aligned {settings['aligned']}, sampling_ratio {settings['sampling_ratio']}"
    )
