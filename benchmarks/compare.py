"""Our speed beside other Mask R-CNNs', each in its own environment: one command, one table.

    python benchmarks/compare.py --out speed.jsonl \\
        --peer tv/bin/python bench_torchvision.py \\
        --peer mg/bin/python bench_modelgarden.py \\
        --peer mg/bin/python "bench_modelgarden.py --batched-nms"
    python benchmarks/compare.py --table speed.jsonl

`--peer` takes an interpreter and a script, which may have flags of its own; a script that is not a path is looked for
in `--peers FOLDER` (default: MRCNN_TF_PEERS, else `../shared/peers` beside the project's folder). A peer whose
interpreter or script is absent is left out. One process at a time, peer after peer for each kind of work, so that a
slow spell of the machine hits all of them. The lines are appended to `--out`, the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("mrcnn_tf", "mrcnn_tf bf16")


def main() -> int:
    """Runs what the flags ask for; returns 1 if a run failed."""
    options = parse()
    if options.table:
        print(table(map(json.loads, options.table.read_text().splitlines())))
        return 0
    runners = list(peers(options)) + [
        (name, [options.own, str(ROOT / "benchmarks" / "speed.py"), "--dtype", dtype, *folder(options)])
        for name, dtype in zip(OURS, ("float32", "bfloat16"), strict=True)
    ]
    lines, failed = [], False
    for work in works(options):
        # Our own script measures the machine's convolutions as well, and a peer's could not.
        for name, command in runners[-2:-1] if "conv" in work else runners:
            line = run(name, [*command, *work, *common(options)], options.limit)
            failed |= line is None
            if line is not None:
                lines.append(line)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(lines))
    return int(failed)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", nargs=2, action="append", default=[], metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--peers", default=os.environ.get("MRCNN_TF_PEERS"), metavar="FOLDER")
    parser.add_argument(
        "--own", default=sys.executable, metavar="PYTHON", help="interpreter for this project"
    )
    parser.add_argument("--out", type=Path, default=Path("speed.jsonl"), help="file for the JSON lines")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the table of such a file, run nothing"
    )
    parser.add_argument(
        "--what", nargs="*", default=["infer", "train"], choices=["infer", "train", "roialign"]
    )
    parser.add_argument("--size", nargs="*", default=["512x512", "800x1344"], metavar="HxW")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--malloc", nargs="*", default=["keep", "default"], choices=["keep", "default"])
    parser.add_argument("--iters", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiet-wait", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one process")
    return parser.parse_args()


def folder(options: argparse.Namespace) -> list[str]:
    """The flag that hands the peers' folder on."""
    return ["--peers", options.peers] if options.peers else []


def peers(options: argparse.Namespace) -> Iterable[tuple[str, list[str]]]:
    """Name and command of each peer that is there."""
    place = Path(options.peers or ROOT.parent / "shared" / "peers")
    for python, text in options.peer:
        script, *flags = shlex.split(text)
        path = Path(script) if Path(script).is_file() else place / script
        if shutil.which(python) is None or not path.is_file():
            missing = path if shutil.which(python) else python
            print(f"left out: {python} {text} ({missing} is not there)", file=sys.stderr)
            continue
        name = " ".join([path.stem.removeprefix("bench_"), *flags])
        yield name, [python, str(path), *flags]


def works(options: argparse.Namespace) -> Iterable[list[str]]:
    """The flags of every kind of work, the machine's own speed first."""
    yield ["--what", "conv", "--size", "800x1344", "--batch", "1", "--malloc", "keep"]
    for malloc in options.malloc:
        for what in options.what:
            for size in ["800x1344"] if what == "roialign" else options.size:
                for batch in [1] if what == "roialign" else options.batch:
                    yield ["--what", what, "--size", size, "--batch", str(batch), "--malloc", malloc]


def common(options: argparse.Namespace) -> list[str]:
    """The flags that every run has."""
    names = ("iters", "warmup", "threads", "quiet_wait")
    return [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]


def run(name: str, command: list[str], limit: float) -> dict | None:
    """The JSON line of one process; None, and a note, where there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"past {limit} s: {shlex.join(command)}", file=sys.stderr)
        return None
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{"):
        print(f"failed: {shlex.join(command)}\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    line = {**json.loads(last), "peer": name, "cpu": cpu()}
    print(name, label(line), line["median_s"], f"others {line['others_cores']}", file=sys.stderr, flush=True)
    return line


def cpu() -> str:
    """The processor's name and the number of its cores that we may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = text.split("model name", 1)[1].split(":", 1)[1].split("\n", 1)[0].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def label(line: dict) -> str:
    """What a line measures."""
    size = "x".join(map(str, line["size"]))
    return f"{line['what']} {size}, batch {line['batch']}, {line['malloc']}"


def table(lines: Iterable[dict]) -> str:
    """Markdown: seconds, then ours over the fastest peer's, then the share of the machine's convolution speed."""
    rows: dict[str, dict[str, tuple[float, str]]] = {}
    work, speed, versions, machines = {}, {}, {}, []
    names = []
    for line in lines:
        versions[line["peer"]] = line["versions"]
        if line["cpu"] not in machines:
            machines.append(line["cpu"])
        if line["what"] == "conv":
            # A neighbour can only make it slower.
            speed = {k: max(v, speed.get(k, 0)) for k, v in line["gflop_per_s"].items()}
            continue
        if line["peer"] not in names:
            names.append(line["peer"])
        if line.get("gflop"):
            work[label(line)] = line["gflop"] * line["batch"]
        parts = line["median_s"] if isinstance(line["median_s"], dict) else {"": line["median_s"]}
        for part, median in parts.items():
            quiet, cpu_s = (line[key][part] if part else line[key] for key in ("quiet_median_s", "cpu_s"))
            seconds, mark = (quiet, "") if quiet is not None else (median, "*")
            cell = f"{seconds:.3f}{mark} ({cpu_s:.2f})"
            rows.setdefault(f"{label(line)} {part}".strip(), {})[line["peer"]] = (seconds, cell)
    names.sort(key=lambda name: name in OURS)
    ratios = [name for name in names if name in OURS]
    heads = [*names, *(f"{name} / fastest peer" for name in ratios), *(f"{name}: share" for name in ratios)]
    out = ["| seconds (CPU seconds) | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row, cells in rows.items():
        fastest, cell = min((cells[n] for n in cells if n not in OURS), default=(None, ""))
        values = [cells[name][1] if name in cells else "-" for name in names]
        for name in ratios:
            mark = "*" if name in cells and "*" in cells[name][1] + cell else ""
            values.append(f"{cells[name][0] / fastest:.2f}{mark}" if name in cells and fastest else "-")
        for name in ratios:
            rate = speed.get("float32" if name == OURS[0] else "bfloat16")
            gflop = work.get(row)
            known = name in cells and rate and gflop
            values.append(f"{gflop / cells[name][0] / rate:.0%}" if known else "-")
        out.append(f"| {row} | " + " | ".join(values) + " |")
    notes = [f"Machine: {'; '.join(machines)}."]
    if speed:
        rates = ", ".join(f"{rate} in {dtype}" for dtype, rate in speed.items())
        notes.append(f"One large convolution (GFLOP/s, measured in the same run): {rates}.")
    for name, own in versions.items():
        notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in own.items()) + ".")
    notes.append(
        "Medians of the iterations in which other processes used less than 0.15 core; * where there was none, of all."
    )
    return "\n".join([*out, "", *notes])


if __name__ == "__main__":
    sys.exit(main())
