"""Builds the site: `python docs/site/build.py`, or `make docs`. A warning is an error."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter

from sphinx.cmd.build import main as sphinx

from stage import ROOT, stage

_HERE = Path(__file__).parent


def main() -> None:
    """Stage the source, build the site, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/site", help="the folder of the site")
    parser.add_argument("--source", type=Path, default=ROOT / "build/site-source", help="the folder of its source")
    parser.add_argument(
        "--execute",
        choices=("force", "cache", "off"),
        default="force",
        help="whether the code of the tutorials is run; 'cache' runs that which has changed",
    )
    parser.add_argument("--jobs", default="2", help="the number of processes")
    given = parser.parse_args()
    start = perf_counter()
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # for commands in cells
    os.environ["COLUMNS"] = "100"  # the width of the tables that they print
    stage(given.source)
    options = [
        *("-b", "html", "-c", str(_HERE), "-d", str(given.source.with_name("site-doctrees")), "-j", given.jobs),
        *("--fail-on-warning", "--keep-going", "--quiet"),
        *("-D", f"nb_execution_mode={given.execute}"),
        *("-D", f"nb_execution_cache_path={given.source.with_name('site-notebooks')}"),
    ]
    if given.execute == "force":
        options.append("--fresh-env")
    status = sphinx([*options, str(given.source), str(given.out)])
    if status:
        sys.exit(status)
    print(f"The site is in {given.out}/index.html, built in {perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
