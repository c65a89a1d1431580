"""Runs an exported folder through TensorFlow's session loader, without this package and without Keras.

    python alone.py FOLDER INPUTS.npz OUTPUTS.npz

INPUTS has arrays `SIGNATURE/CALL/INPUT`; files are uint8 arrays `SIGNATURE/CALL/INPUT/ROW`. OUTPUTS gets
`SIGNATURE/CALL/OUTPUT`. `check.py` starts it.
"""

import sys

# What this project exports must not need them; whoever imports them fails here.
sys.modules["mrcnn_tf"] = sys.modules["keras"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def main(folder: str, inputs: str, outputs: str) -> None:
    """See above."""
    calls: dict[str, dict] = {}
    for name, value in np.load(inputs).items():
        signature, call, key, *row = name.split("/")
        fed = calls.setdefault(f"{signature}/{call}", {})
        if row:
            fed.setdefault(key, []).append(value.tobytes())
        else:
            fed[key] = value
    results = {}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        graph = meta_graph.graph_def
        names = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
        results["operations"] = np.array(sorted(names))
        for call, fed in calls.items():
            signature = meta_graph.signature_def[call.split("/")[0]]
            feed = {signature.inputs[key].name: value for key, value in fed.items()}
            fetches = {key: info.name for key, info in signature.outputs.items()}
            for key, value in session.run(fetches, feed).items():
                results[f"{call}/{key}"] = value
    np.savez(outputs, **results)  # type: ignore[arg-type]


main(*sys.argv[1:])
