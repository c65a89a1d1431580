"""Reads `configs/*.yaml`, which are only spellings of constructor arguments; their keys are in `mrcnn_tf.schema`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mrcnn_tf.schema import Config

CONFIG_ENDINGS = (".yaml", ".yml")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file and key and says what is allowed."""


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file, the files it names as `base:`, and overrides.

    Args:
        path: the file. Its `base:`, relative to itself, is read first and its keys are overridden one by one;
            a list or a null replaces the base's.
        overrides: such as `"train.batch_size=4"`; the value is YAML.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key, a value of the wrong type or an impossible
            combination; the message has a line for each, with the key's path.
    """
    return make_config(override(_read(Path(path), ()), overrides or []), source=str(path))


def override(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Nested dictionaries with overrides such as `"train.batch_size=4"` put in; errors as in `load_config`."""
    for text in overrides:
        key, sign, right = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {text!r} must look like train.batch_size=4")
        try:
            value: Any = yaml.safe_load(right)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {text!r}: the value is not YAML ({error})") from None
        if key == "init_from" and str(value).endswith(CONFIG_ENDINGS):
            value = str(Path(value).resolve())
        for part in reversed(key.split(".")):
            value = {part: value}
        values = _merge(values, value)
    return values


def make_config(values: dict[str, Any], source: str = "config") -> Config:
    """Checks nested dictionaries against the schema; errors as in `load_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None


def selection_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What `model.KEY=VALUE` says of a trained model's detections: arguments of `MaskRCNN.set_selection`, of any key.

    Raises:
        ConfigError: for keys outside `model`, and wrong values.
    """
    values = override({}, list(overrides))
    for key, section in values.items():
        if key != "model" or not isinstance(section, dict):
            raise ConfigError(
                f"{key}: of a trained model only model.KEY can be set, such as model.nms_threshold=0.6"
            )
    config = make_config(values, "command line")
    return {key: config.model.model_dump()[key] for key in values.get("model", {})}


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def differences(there: Config, here: Config) -> list[str]:
    """The keys in which two configs differ, with both values."""

    def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out.update(
                leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
            )
        return out

    a, b = (leaves(yaml.safe_load(dump_config(config))) for config in (there, here))
    return [
        f"{key}: {a.get(key, 'unset')} there, {b.get(key, 'unset')} here"
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]


def _explain(source: str, error: Any) -> str:
    path = ".".join(
        str(p) for p in error["loc"] if not str(p).startswith(("function", "constrained", "literal"))
    )
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            annotation = getattr(field, "annotation", None)
            options = [
                a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")
            ]
            section = options[0] if options else None
        names = ", ".join(f.alias or k for k, f in section.model_fields.items()) if section else ""
        return f"{source}: {path}: unknown key" + (f"; there are {names}" if names else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{source}: {path + '.' if path else ''}{message}"
    return f"{source}: {path}: {message}, not {error['input']!r}"


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: base leads back to the file itself")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values, not a {type(values).__name__}")
    # Configs are found from the file that names them, everything else from the current folder.
    if str(values.get("init_from")).endswith(CONFIG_ENDINGS):
        values["init_from"] = str((path.parent / values["init_from"]).resolve())
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read(path.parent / str(base), (*seen, path)), values)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out
