"""Speed of RoIAlign and Shape-aware RoIAlign, all backends, on the work that the peers' benchmarks fix.

    python benchmarks/roi_align.py --malloc keep --iters 10
    tv/bin/python bench_torchvision.py --what roialign --malloc keep > peers.jsonl
    mg/bin/python bench_modelgarden.py --what roialign --malloc keep >> peers.jsonl
    python benchmarks/roi_align.py --malloc keep --iters 10 --beside peers.jsonl

1000 boxes into 7 x 7 bins and 100 boxes into 14 x 14, 2 x 2 samples a bin, 256 channels, P2 to P5 of the image. Prints
a table of milliseconds, the custom backend's ratios to the others and to the peers, and one JSON line. `fwd+bwd`
returns the output and the gradients of the maps, and of the probabilities where it says so: a graph that returned only
the gradients would leave the forward pass out. The peers' scripts and `peer_common.py` are found as in `speed.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from peer_path import make_importable

make_importable(sys.argv[1:])

import peer_common as pc

BACKENDS = ("custom", "crop", "sparse", "gather")
WORKS = ((1000, 7), (100, 14))


def own_flags(parser: argparse.ArgumentParser) -> None:
    """What the peers' scripts do not have."""
    parser.set_defaults(what="roialign")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--beside", type=Path, metavar="FILE", help="peers' JSON lines to compare with")
    parser.add_argument("--peers", metavar="FOLDER", help="where peer_common.py is")


args = pc.parse_args(__doc__, own_flags)
pc.limit_threads(args.threads)

import numpy as np
import tensorflow as tf

from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.shape_aware import shape_aware_roi_align

STRIDES = (4, 8, 16, 32)


def with_gradient(pool: Callable[..., tf.Tensor], of_probabilities: bool) -> Callable:
    """Output and gradients."""

    def both(maps: list[tf.Tensor], probabilities: tf.Tensor) -> tuple:
        inputs = [*maps, probabilities] if of_probabilities else maps
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = pool(maps, probabilities)
        return out, tape.gradient(out, inputs, tf.ones_like(out))

    return both


def measure() -> dict[str, pc.Times]:
    """Times of all works, kinds and backends: `{"1000x7x7_sr2_fwd custom": ...}`."""
    nchw = pc.make_features(args.h, args.w, args.batch, 256, args.seed)
    maps = [tf.cast(f.transpose(0, 2, 3, 1), args.dtype) for f in nchw.values()]
    times = {}
    for count, size in WORKS:
        rois = [
            pc.make_rois(args.h, args.w, count, args.seed + b)[:, [1, 0, 3, 2]] for b in range(args.batch)
        ]
        boxes = tf.constant(np.stack(rois))
        probabilities = tf.random.stateless_uniform([args.batch, count, 28, 28], [0, args.seed])
        kinds: dict[str, tuple[Callable, Callable]] = {}
        options = {"strides": STRIDES, "output_size": size, "sampling_ratio": 2}
        for backend in args.backends:

            def plain(maps, _, boxes=boxes, options=options, backend=backend):
                return roi_align(maps, boxes, backend=backend, **options)

            def aware(maps, probabilities, boxes=boxes, options=options, backend=backend):
                return shape_aware_roi_align(maps, boxes, probabilities, backend=backend, **options)

            for kind, function in {
                "fwd": plain,
                "fwdbwd": with_gradient(plain, False),
                "aware_fwd": aware,
                "aware_fwdbwd": with_gradient(aware, False),
                "aware_fwdbwd_map": with_gradient(aware, True),
            }.items():
                graph = tf.function(function, autograph=False)

                def call(graph=graph, probabilities=probabilities):
                    graph(maps, probabilities)

                kinds.setdefault(kind, {})[backend] = call
        calls = {
            f"{count}x{size}x{size}_sr2_{kind} {backend}": call
            for kind, own in kinds.items()
            for backend, call in own.items()
        }
        times.update((name, pc.Times()) for name in calls)
        # All in turn, so that a slow spell of the machine hits all of them.
        for turn in range(args.iters):
            for name, call in calls.items():
                one = pc.time_calls(call, 1, args.warmup if turn == 0 else 0, args.quiet_wait)
                times[name].extend(one)
                times[name].cpu.extend(one.cpu)
                times[name].others.extend(one.others)
    return times


def table(seconds: dict[str, float], peers: dict[str, dict[str, float]]) -> str:
    """Markdown: milliseconds of our backends and the peers, and custom's ratio to each."""
    works = list(dict.fromkeys(name.split()[0] for name in seconds))
    others = [b for b in args.backends if b != "custom"]
    heads = [*args.backends, *peers, *(f"custom / {name}" for name in (*others, *peers)), "aware / plain"]
    lines = ["| milliseconds | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for work in works:
        row = {backend: seconds.get(f"{work} {backend}") for backend in args.backends}
        row |= {name: own.get(work) for name, own in peers.items()}
        ours = row.get("custom")
        plain = seconds.get(f"{work.replace('aware_', '').removesuffix('_map')} custom")
        cells = [f"{value * 1e3:.1f}" if value else "-" for value in row.values()]
        cells += [f"{ours / row[n]:.3f}" if ours and row[n] else "-" for n in (*others, *peers)]
        cells.append(f"{ours / plain:.2f}" if ours and plain and "aware" in work else "-")
        lines.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and the line."""
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    peers: dict[str, dict[str, float]] = {}
    if args.beside:
        for line in map(json.loads, args.beside.read_text().splitlines()):
            peers[line["peer"]] = {k: line["quiet_median_s"].get(k) or v for k, v in line["median_s"].items()}
    times = measure()
    print(table({name: float(np.median(t.quiet() or t)) for name, t in times.items()}, peers))
    settings = {"aligned": True, "levels": [2, 3, 4, 5], "channels": 256, "map": [28, 28]}
    pc.emit(args, "mrcnn_tf", times, {"tensorflow": tf.__version__}, settings, dtype=args.dtype)


if __name__ == "__main__":
    main()
