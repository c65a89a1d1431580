"""`mrcnn predict-batch`."""

from __future__ import annotations

import argparse
import logging

SUMMARY = "predict any number of images with an exported model, on Apache Beam"
EXAMPLES = """examples:
  mrcnn predict-batch --input 'photos/**.jpg' --model saved_models/mine/1 --output found/photos
  mrcnn predict-batch --input list.txt --model saved_models/mine/1 --output found/listed --format parquet
  mrcnn predict-batch --input 'train-*.tfrecord' --model saved_models/mine/1 --output found/t -- --direct_num_workers=8
  mrcnn predict-batch --input 'gs://B/*.jpg' --model gs://B/mine/1 --output gs://B/found -- --runner=DataflowRunner ...
What stands behind -- are Beam's own pipeline options. Started again, it makes only the shards that are not finished."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="INPUT",
        help="a pattern of image or TFRecord files, or a .txt file with one path a line",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a version's folder of `mrcnn export`")
    parser.add_argument(
        "--output", required=True, metavar="PREFIX", help="beginning of the results' file names"
    )
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), default="jsonl", help="of the results (default: jsonl)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images that go through the model together (default: 1)",
    )
    parser.add_argument(
        "--score", type=float, metavar="S", help="detections from this score on (default: the model's own)"
    )
    parser.add_argument("--shard-size", type=int, metavar="N", help="images in a results file (default: 200)")
    parser.add_argument("beam_options", nargs="*", metavar="-- OPTION", help="Beam's pipeline options")


def run(options: argparse.Namespace) -> int:
    """`mrcnn predict-batch`."""
    logging.basicConfig(level=logging.ERROR)  # Beam tells much of itself
    try:
        from mrcnn_tf.batch.run import predict_batch
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise RuntimeError("predict-batch needs Apache Beam: pip install 'mrcnn_tf[beam]'") from None

    done = predict_batch(
        options.input,
        options.model,
        options.output,
        form=options.format,
        batch_size=options.batch_size,
        score=options.score,
        shard_size=options.shard_size,
        beam_options=options.beam_options,
    )
    repeated = f", {done.repeated} listed again and left out" if done.repeated else ""
    print(
        f"{done.predicted} images predicted, {done.failed} inputs in the dead letters "
        f"({options.output}-*.failed.jsonl){repeated}; {done.shards} shards, {done.kept} of them kept from before"
    )
    if done.kept < done.shards:
        print(
            f"{done.images_per_second:.2f} images/s in this run; "
            f"a worker's memory was {done.peak_bytes / 2**20:.0f} MiB at most"
        )
    return 0 if done.predicted else 1
