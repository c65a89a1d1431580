"""Time and memory of LiteRT files of Mask R-CNN with ResNet-50 and FPN, 80 classes, fresh weights.

    python benchmarks/export_litert.py --size 512x512 --proposals 1000 100 --precisions float32 int8

Needs `pip install "mrcnn_tf[litert]"`. Each file runs in a process of its own, which has nothing but the interpreter.
Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mrcnn_tf.export.litert import export_litert
from mrcnn_tf.layers.rpn import RPN
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.tables import markdown

RUN = """
import sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
run = Interpreter(model_path=sys.argv[1], num_threads=int(sys.argv[2])).get_signature_runner()
shape = run.get_input_details()["image"]["shape"]
image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
times = []
for _ in range(20):
    start = time.perf_counter()
    run(image=image, image_size=np.array(shape[1:3], np.int32))
    times.append(time.perf_counter() - start)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1000 * min(times), int(peak.split()[1]) / 1024)
"""


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="512x512", metavar="HxW", help="of the input (default: 512x512)")
    parser.add_argument("--proposals", type=int, nargs="+", default=[1000, 100], metavar="N")
    parser.add_argument("--precisions", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    noise = [np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8) for i in range(4)]
    rows = []
    for proposals in options.proposals:
        model = MaskRCNN([f"class {i}" for i in range(80)], rpn=RPN(post_nms=(1000, proposals)))
        for precision in options.precisions:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.tflite"
                made = export_litert(
                    model, file, size=(height, width), precision=precision, calibration=noise
                )
                command = [sys.executable, "-c", RUN, str(file), str(options.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            milliseconds, megabytes = map(float, done.stdout.split())
            size = f"{made.num_bytes / 1e6:.0f}"
            rows.append([str(proposals), precision, size, f"{milliseconds:.0f}", f"{megabytes:.0f}"])
    print(markdown(["proposals", "precision", "file, MB", "ms an image", "peak memory, MB"], rows))


if __name__ == "__main__":
    main()
