"""The earlier phase that a run starts from, when `init_from` names a config: what it is, and how far it is."""

from __future__ import annotations

from mrcnn_tf.config import ConfigError, differences, load_config
from mrcnn_tf.schema import Config

NOT_BEGUN, BROKEN_OFF, FINISHED = range(3)


def phase_config(config: Config) -> Config:
    """The config that `init_from` names, with what it must share with the later run: model, data, seed, precision.

    It is trained on the same devices and beside the later run, and not exported.

    Raises:
        ConfigError: the config cannot be used, or both would write to one folder.
    """
    path = str(config.init_from)
    settings = load_config(path)
    shared = {key: getattr(config, key) for key in ("data", "seed", "precision", "output")}
    shared["model"] = config.model.model_copy(update={"refining": settings.model.refining})
    shared["train"] = settings.train.model_copy(update={"devices": config.train.devices})
    shared["export"] = settings.export.model_copy(update={"saved_model": False})
    settings = settings.model_copy(update=shared)
    if settings.run_folder == config.run_folder:
        raise ConfigError(
            f"init_from: {path} would write to {config.run_folder} like this config; give each a name, with {{name}} "
            "in output"
        )
    return settings


def phase_state(config: Config, path: str) -> int:
    """Whether an earlier phase is to be trained, gone on with or used as it is; says so."""
    folder = config.run_folder
    unlike = ["there is none yet"]
    if (folder / "config.yaml").exists():
        unlike = [d for d in differences(load_config(folder / "config.yaml"), config) if decides_weights(d)]
    evaluated = (folder / "metrics.json").exists() or not (
        config.data.generated or config.data.val.annotations
    )
    if not unlike and evaluated and (folder / "model.keras").exists():
        print(f"starting from {folder / 'model.keras'}, trained before with {path}")
        return FINISHED
    print(f"first {path}, to start from" + (f" ({'; '.join(unlike[:3])})" if unlike else ""), flush=True)
    return NOT_BEGUN if unlike else BROKEN_OFF


def decides_weights(difference: str) -> bool:
    """Whether a line of `config.differences` is about a key that a trained model's weights depend on."""
    key = difference.partition(":")[0]
    section, _, name = key.partition(".")
    bookkeeping = ("devices", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
    return section in ("model", "data", "seed", "precision", "init_from") or (
        section == "train" and name not in bookkeeping
    )
