"""Where the other projects' benchmarks, and the `peer_common.py` beside them, are."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_importable(arguments: list[str]) -> None:
    """Puts `mrcnn_tf`'s folder and that of `peer_common.py` on the path; ends the program if the latter is not there.

    The flag `--peers`, else MRCNN_TF_PEERS, else `../shared/peers` beside the project names it.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peers", default=os.environ.get("MRCNN_TF_PEERS", ROOT.parent / "shared" / "peers"))
    folder = Path(parser.parse_known_args(arguments)[0].peers)
    if not (folder / "peer_common.py").is_file():
        sys.exit(f"error: {folder} has no peer_common.py; name the folder with --peers or MRCNN_TF_PEERS")
    sys.path[:0] = [str(ROOT), str(folder)]
