"""Puts the site into the wheel, where the service finds it, and into the sdist, if it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PLACES = {"wheel": "gradest_service/site", "sdist": "build/site"}


class SiteHook(BuildHookInterface):  # type: ignore[type-arg]  # its configuration is not typed
    """Adds build/site to what is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder, unless there is none, or the installation is an editable one, which finds it in the checkout."""
        site = Path(self.root) / "build/site"
        if version != "editable" and (site / "index.html").is_file():
            build_data["force_include"][str(site)] = _PLACES[self.target_name]
