"""Installs mrcnn_tf; all metadata is in pyproject.toml."""

from pathlib import Path

from setuptools import Distribution, setup


class _Distribution(Distribution):
    def has_ext_modules(self) -> bool:
        """A wheel that carries what `mrcnn build-ops --package` made is for one platform only."""
        return any(Path(__file__).parent.glob("mrcnn_tf/ops/lib/*.so"))


setup(distclass=_Distribution)
