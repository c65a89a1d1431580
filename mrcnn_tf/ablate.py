"""`mrcnn ablate`: several configs, each with several seeds, and one table of what came out.

Every run is a process of its own, so that none inherits anything of the one before it, and one that fails does not take
the others with it. What is finished is kept: the same command again goes on where it was stopped.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mrcnn_tf.config import CONFIG_ENDINGS, ConfigError, differences, load_config, make_config
from mrcnn_tf.schema import Config
from mrcnn_tf.tables import write_comparison

DEFAULT_METRICS = ("bbox/AP", "segm/AP", "huddled/same@0.1/bbox/AP", "huddled/same@0.1/segm/AP")


@dataclass(frozen=True)
class Run:
    """One config with one seed.

    Attributes:
        config: as resolved.
        arguments: of `mrcnn train`.
    """

    config: Config
    arguments: tuple[str, ...]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.config.name}, seed {self.config.seed}"

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.config.run_folder

    def metrics(self) -> dict[str, Any] | None:
        """What it measured; None if it is not finished."""
        try:
            return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ValueError(
                f"{self.folder / 'metrics.json'}: not valid JSON; delete the folder to run it again"
            ) from None


def ablate(
    configs: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    out: str | Path,
    baseline: str | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    overrides: Sequence[str] = (),
) -> bool:
    """Trains every config with every seed, and writes `table.md` and `table.csv` to `out` after each run.

    A run lives in `out/NAME/seedN`, NAME being the config's `name`. One that has a `metrics.json` is taken as it is,
    one with checkpoints goes on from the newest. All configs of a seed are run before the next seed, so that the
    table compares like with like from early on. A run that fails is named at the end; the others go on.

    Args:
        configs: YAML files.
        seeds: which.
        out: folder for everything.
        baseline: name of the config that the others are compared with; the first one if None.
        metrics: keys of `metrics.json`, the table's columns.
        overrides: such as `"train.steps=500"`, for every run.

    Returns:
        Whether all runs finished.

    Raises:
        ConfigError: a config cannot be used, two have the same name, one is what another starts from, or a folder
            holds a run of another config.
        ValueError: there is no such baseline or metric, or a seed is given twice.
        KeyboardInterrupt: stopped; the run at work has saved a checkpoint.
    """
    out = Path(out)
    runs = plan(configs, seeds, out, overrides)
    names = list(dict.fromkeys(run.config.name for run in runs))
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise ValueError(f"baseline {baseline}: no config has this name; there are {', '.join(names)}")
    for run in runs:
        check_folder(run)
    todo = [run for run in runs if run.metrics() is None]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already", flush=True)
    problem = unknown_metric(runs, metrics)
    if problem:
        raise ValueError(problem)
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(out, measured(runs), baseline, metrics)
    failed, start, told = [], time.monotonic(), False
    for number, run in enumerate(todo):
        position = f"[{len(runs) - len(todo) + number + 1}/{len(runs)}]"
        print(f"\n{position} {run.title}{time_left(time.monotonic() - start, number, len(todo))}", flush=True)
        status, stopped = run_child(command(run))
        if stopped:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise KeyboardInterrupt
        if status or run.metrics() is None:
            reason = f"exit status {status}" if status else "no metrics.json; is there a validation set?"
            failed.append(f"{run.title}: {reason} ({run.folder})")
            print(f"{position} failed, {reason}", file=sys.stderr, flush=True)
        write_comparison(out, measured(runs), baseline, metrics)
        if not told and (problem := unknown_metric(runs, metrics)):
            # Not an error any more: the runs that are to come are worth having whatever the columns are.
            print(f"warning: {problem}", file=sys.stderr, flush=True)
            told = True
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}\nwritten to {out / 'table.md'} and table.csv")
    if failed:
        lines = "\n".join(f"  {line}" for line in failed)
        print(
            f"{len(failed)} of {len(runs)} runs failed; the same command tries them again:\n{lines}",
            file=sys.stderr,
        )
    return not failed


def plan(
    configs: Sequence[str | Path], seeds: Sequence[int], out: Path, overrides: Sequence[str] = ()
) -> list[Run]:
    """The runs, all configs of the first seed first; errors as those of `ablate`."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {' '.join(map(str, seeds))}: one is given twice")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in ("name", "seed", "output"):
            raise ConfigError(
                f"override {override}: {key} is what tells the runs apart; leave it to the configs and --seeds"
            )
    runs = []
    for seed in seeds:
        paths: dict[str, str | Path] = {}
        for path in configs:
            # JSON is YAML in which no character of a path has a meaning.
            own = [f"seed={seed}", f"output={json.dumps(str(out / '{name}' / f'seed{seed}'))}"]
            changes = ["export.saved_model=false", *overrides, *own]
            config = load_config(path, changes)
            if config.name in paths:
                raise ConfigError(
                    f"{path}: has the name {config.name}, like {paths[config.name]}; give each config a name of its own"
                )
            paths[config.name] = path
            runs.append(Run(config, ("--config", str(path), *changes)))
    names = {run.config.name for run in runs}
    for run in runs:
        source = run.config.init_from
        if source is None or not source.endswith(CONFIG_ENDINGS):
            continue
        # It would be trained twice, with and without the overrides, into one folder.
        if (name := load_config(source).name) in names:
            raise ConfigError(
                f"{name}: is what {run.config.name} starts from (init_from), and is trained for that anyway, into the "
                "same folder; leave it out"
            )
    return runs


def check_folder(run: Run) -> None:
    """Raises ConfigError where the run's folder holds one of another config."""
    path = run.folder / "config.yaml"
    if not path.exists():
        if run.metrics() is not None:
            raise ConfigError(
                f"{run.folder}: has a metrics.json but no config.yaml to tell of what; delete the folder"
            )
        return
    try:
        # Through the schema, so that a key that is new since then has its default.
        found = make_config(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        differing = differences(found, run.config)
    except (ConfigError, yaml.YAMLError, TypeError):
        differing = ["it cannot be read by this version"]
    if differing:
        raise ConfigError(
            f"{path}: is another config than the one to run ({'; '.join(differing[:3])}); choose another --out, or "
            f"delete {run.folder}"
        )


def command(run: Run) -> list[str]:
    """The run's process."""
    resume = any((run.folder / "checkpoints").glob("step_*.keras"))
    return [
        sys.executable,
        "-m",
        "mrcnn_tf.cli",
        "train",
        *(["--resume"] if resume else []),
        *run.arguments,
    ]


def run_child(arguments: list[str]) -> tuple[int, bool]:
    """Runs a process that shares the terminal.

    Ctrl-C reaches it from the terminal, SIGTERM is handed on; then it is waited for, since it saves a checkpoint.

    Returns:
        Its exit status, and whether it was stopped.
    """
    child: subprocess.Popen | None = None
    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(arguments)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status, stopped or status == 130  # what `mrcnn train` ends with when it was interrupted


def time_left(seconds: float, done: int, runs: int) -> str:
    """How long it will take, once a run of this call has shown it."""
    if not done:
        return ""
    minutes = seconds / done * (runs - done) / 60
    return f", about {minutes:.0f} min left" if minutes < 90 else f", about {minutes / 60:.1f} h left"


def unknown_metric(runs: Sequence[Run], metrics: Sequence[str]) -> str | None:
    """What is wrong with the columns, going by the first finished run; None without one."""
    for run in runs:
        found = run.metrics()
        if found is not None:
            known = [key for key, value in found.items() if isinstance(value, (int, float))]
            missing = [key for key in metrics if key not in known]
            if missing:
                return (
                    f"metric {missing[0]}: not in {run.folder / 'metrics.json'}; there are {', '.join(known)}"
                )
            return None
    return None


def measured(runs: Sequence[Run]) -> dict[str, dict[int, dict[str, Any]]]:
    """The metrics of each config's seeds, empty for a run that is not finished."""
    out: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        out.setdefault(run.config.name, {})[run.config.seed] = run.metrics() or {}
    return out
