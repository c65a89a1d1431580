"""A plan as text: tables, and every assumption beside the numbers that rest on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GIB = 2**30


def report(plan: dict[str, Any]) -> str:
    """What `mrcnn_tf.planning.plan.plan` gave, for people."""
    height, width = plan["canvas"]
    blocks = [
        f"{plan['config']}: {plan['classes']} classes, canvas {height} x {width}, {plan['precision']}, "
        f"{plan['images_per_device']} images a step on each device",
        _parameters(plan),
        _work(plan),
        _memory(plan),
        _traffic(plan),
        _times(plan),
        "assumptions\n" + "\n".join(f"- {line}" for line in assumptions(plan)),
    ]
    return "\n\n".join(blocks)


def _parameters(plan: dict[str, Any]) -> str:
    rows = [["parameters", "all", "trained", "frozen"]]
    parts = plan["parameters"]
    rows += [[part, *(f"{parts[part][key]:,}" for key in rows[0][1:])] for part in parts]
    rows.append(["together", *(f"{sum(p[key] for p in parts.values()):,}" for key in rows[0][1:])])
    return aligned(rows)


def _work(plan: dict[str, Any]) -> str:
    columns = plan["gflop_per_image"]
    rows = [["GFLOP an image", "detecting", "training, forward", "training step"]]
    parts = list(columns["training"])
    rows += [[part, *(f"{column.get(part, 0.0):,.1f}" for column in columns.values())] for part in parts]
    rows.append(["together", *(f"{sum(column.values()):,.1f}" for column in columns.values())])
    return aligned(rows)


def _memory(plan: dict[str, Any]) -> str:
    kept, again = plan["memory"]["kept"], plan["memory"]["checkpointing"]
    mark = ["", " (as configured)"]
    heads = [f"checkpointing off{mark[not plan['checkpointing']]}", f"on{mark[plan['checkpointing']]}"]
    rows = [["GiB on each device", *heads]]
    rows += [[name, _gib(kept[name]), _gib(again[name])] for name in kept]
    rows.append(["together", _gib(sum(kept.values())), _gib(sum(again.values()))])
    size, files = plan["checkpoint_bytes"], plan["checkpoint_files"]
    return (
        f"{aligned(rows)}\non disk: a checkpoint has {_gib(size)} GiB; with the best, the finished model and one being "
        f"written there are up to {files}: {_gib(files * size)} GiB"
    )


def _traffic(plan: dict[str, Any]) -> str:
    traffic = plan["traffic"]
    lines = [
        f"summed over the devices in a step: {traffic['gradients'] / 1e6:,.1f} MB of gradients and "
        f"{traffic['others'] / 1e6:,.3f} MB of other sums, in {traffic['messages']} all-reduces"
    ]
    for workers, size in plan["sent_per_step"].items():
        lines.append(f"  {workers} workers: each sends and receives {size / 1e6:,.1f} MB a step")
    return "\n".join(lines)


def _times(plan: dict[str, Any]) -> str:
    if "scaling" not in plan:
        return "times: not known; give --measure, --step-seconds or --tflops"
    lines = []
    if "measured" in plan:
        lines += _measured(plan)
    lines.append(
        f"one worker: {plan['step_seconds']:.3f} s a step, which is {plan['reached_tflops']:.3g} TFLOP/s a device"
    )
    heads = ["workers", "devices", "batch", "learning rate", "steps", "compute s", "all-reduce s", "step s"]
    rows = [[*heads, "images/s", "efficiency", "hours"]]
    for row in plan["scaling"]:
        rows.append(
            [
                *(str(row["workers"]), str(row["devices"]), str(row["batch"]), f"{row['learning_rate']:.4g}"),
                *(str(row["steps"]), *(f"{row[key]:.3f}" for key in ("compute", "all_reduce", "step"))),
                *(f"{row['images_per_second']:.2f}", f"{row['efficiency']:.0%}", f"{row['hours']:.1f}"),
            ]
        )
    return "\n".join(lines) + "\n" + aligned(rows)


def _measured(plan: dict[str, Any]) -> list[str]:
    m, memory = plan["measured"], plan["memory"]["checkpointing" if plan["checkpointing"] else "kept"]
    lines = [
        f"measured here: {len(m['seconds'])} steps of {m['images']} images on {m['devices']} {m['kind']} device(s), "
        f"median {m['step_seconds']:.3f} s (from {min(m['seconds']):.3f} to {max(m['seconds']):.3f})"
    ]
    if m["peak"] is not None:
        devices, own = (1, "") if m["kind"] == "GPU" else (m["devices"], ", TensorFlow's graphs included")
        lines.append(
            f"memory at most: measured {_gib(m['peak'])} GiB{own}, estimated {_gib(devices * sum(memory.values()))} GiB"
        )
    return lines


def assumptions(plan: dict[str, Any]) -> list[str]:
    """What the numbers rest on, one sentence each."""
    lines = [
        "work: convolutions and matrix products, an addition with its product counted as two; not what is done to each "
        "number alone, nor NMS and RoIAlign",
        "memory: an estimate, without CUDA's context, cuDNN's workspace and the allocator's gaps",
        "a checkpoint holds weights and optimizer in float32",
        "every gradient is sent once a step, in float32, after the last is computed",
    ]
    if "scaling" not in plan:
        return lines
    if "measured" in plan:
        lines.append("images were made up in memory: a data pipeline that does not keep up adds to this")
    elif plan["tflops"] is not None:
        lines.append(f"a device does {plan['tflops']:g} TFLOP/s from the first to the last image (--tflops)")
    else:
        lines.append(f"a step of one worker takes {plan['step_seconds']:g} s (--step-seconds)")
    lines.append("time is proportional to the images on a device, and all devices take equally long")
    link = plan["link"]
    if link is not None:
        source = "fitted to --allreduce" if link["fitted"] else "--bandwidth and --latency"
        lines.append(
            f"between workers {link['bandwidth'] / 1e9:.4g} GB/s each way and {1e6 * link['latency']:.4g} us "
            f"({source}), in a ring; {plan['overlap']:.0%} of the compute time hides it (--overlap)"
        )
    batches = {row["batch"] for row in plan["scaling"]}
    if len(plan["scaling"]) > 1:
        lines.append(
            "the batch stays as it is and is split (train.batch_per_device makes it grow)"
            if len(batches) == 1
            else "the batch grows (train.batch_per_device): for k times train.batch_size, k times SGD's learning rate "
            "(Goyal et al., 2017), sqrt(k) times AdamW's (Malladi et al., 2022), and 1/k of the steps"
        )
    lines.append("hours: training steps alone, without evaluation, checkpoints and export")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:,.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
