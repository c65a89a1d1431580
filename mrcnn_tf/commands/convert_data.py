"""`mrcnn convert-data`."""

from __future__ import annotations

import argparse

SUMMARY = "write a COCO-format data set as TFRecord shards, or index shards of others"
EXAMPLES = """an interrupted conversion goes on when the same command is given again.
examples:
  mrcnn convert-data --annotations train.json --images train/ --out records/train
  mrcnn convert-data --verify records/train/manifest.json
  mrcnn convert-data --records 'coco/train-*.tfrecord' --labels coco.pbtxt --out coco/index"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--annotations", metavar="JSON", help="the annotation file of the set to convert")
    what.add_argument(
        "--records", metavar="PATTERN", help="shards that others made: write a manifest for them"
    )
    what.add_argument(
        "--verify", metavar="MANIFEST", help="read all shards of a manifest and compare checksums"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images")
    parser.add_argument("--out", metavar="DIR", help="folder to write to")
    parser.add_argument("--shards", type=int, metavar="N", help="number of shards (one for each 1000 images)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")
    parser.add_argument(
        "--masks",
        choices=["rle", "png", "none"],
        default="rle",
        help="masks for other readers: run-length codes, or the Object Detection API's PNG, large and slow (rle)",
    )
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave out images that cannot be read, and count"
    )
    parser.add_argument(
        "--labels", metavar="MAP", help="with --records: label map or COCO JSON that names the classes"
    )


def run(options: argparse.Namespace) -> None:
    """`mrcnn convert-data`."""
    from mrcnn_tf.data.records.convert import adopt, convert
    from mrcnn_tf.data.records.manifest import read_manifest, verify

    if options.verify:
        manifest = verify(options.verify)
        print(
            f"{options.verify}: {len(manifest['shards'])} shards, {manifest['images']} images, all checksums right"
        )
        return
    if not options.out or (options.annotations and not options.images):
        raise ValueError("give --out, and --images with --annotations")
    if options.records:
        path = adopt(options.records, options.out, labels=options.labels, workers=options.workers)
    else:
        path = convert(
            options.annotations,
            options.images,
            options.out,
            shards=options.shards,
            workers=options.workers,
            masks=options.masks,
            skip_damaged=options.skip_damaged,
        )
    manifest = read_manifest(path)
    print(
        f"{path}: {manifest['images']} images, {manifest['annotations']} annotations "
        f"in {len(manifest['shards'])} shards, {sum(shard['bytes'] for shard in manifest['shards']) / 1e6:.1f} MB"
    )
    if skipped := [line for shard in manifest["shards"] for line in shard.get("skipped", [])]:
        print(f"{len(skipped)} images left out, see 'skipped' in the manifest; the first is {skipped[0]}")
