"""The `mrcnn` command. `train.py` and `evaluate.py` are its first two subcommands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mrcnn_tf.commands import (
    ablate,
    build_ops,
    check_data,
    clean,
    convert_data,
    evaluate,
    export,
    import_weights,
    inspect,
    masks,
    plan,
    predict,
    predict_batch,
    train,
)

DESCRIPTION = "Mask R-CNN and Mask Refining R-CNN for Keras 3 on TensorFlow."
COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "predict-batch": predict_batch,
    "check-data": check_data,
    "convert-data": convert_data,
    "inspect": inspect,
    "clean": clean,
    "masks": masks,
    "export": export,
    "import": import_weights,
    "build-ops": build_ops,
    "ablate": ablate,
    "plan": plan,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status: 0, 1 for an error that was explained, 130 when interrupted."""
    # TensorFlow's start-up notes would hide ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # argparse takes positional arguments from one place only; KEY=VALUE may stand between and behind options.
    if rest and (not hasattr(options, "overrides") or any("=" not in r or r[0] == "-" for r in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        return options.run(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # What fails inside tf.data (an image that cannot be read) comes as TensorFlow's own error.
        if not hasattr(error, "error_code"):
            raise
        from mrcnn_tf.data.pipeline import explain  # imports TensorFlow, which not every command needs

        print(f"error: {explain(error)}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="mrcnn", description=DESCRIPTION)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
