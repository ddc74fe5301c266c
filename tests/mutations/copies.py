"""A copy of the working tree, with an environment of its own, in which a fault's tests run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from tests.mutations.mutation import Mutation

REPOSITORY = Path(__file__).resolve().parents[2]
IN_MAKE_TEST = "not deep and not gpu and not benchmark"
LEFT_BEHIND = (".git", ".venv", "runs", "build", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")

SERVER = """
import json, os, sys
# what most tests need, and takes seconds to import
import fastapi, httpx, hypothesis, numba, pytest, scipy.stats, torch, torch._dynamo, typer, uvicorn
for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = pytest.main(arguments)
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs pytest in a fork of a process that has torch already, for each line of arguments; answers with the exit code."""


class Copy:
    """A copy of the working tree, with a virtual environment in which its packages come first."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        # with times, so that what Python and numba have compiled stays valid
        shutil.copytree(REPOSITORY, self.tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        venv.create(self.tree / ".venv", symlinks=True, with_pip=False)
        self.python = self.tree / ".venv" / "bin" / "python"
        (site,) = (self.tree / ".venv" / "lib").glob("python*/site-packages")
        ours = [Path(path) for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
        roots = [self.tree, self.tree / "plugins", self.tree / "service"]
        (site / "_copy.pth").write_text("\n".join(map(str, [*roots, *ours])) + "\n")
        for metadata in ours[0].glob("gradest-*.dist-info"):  # so that it is found first, with its entry points
            shutil.copytree(metadata, site / metadata.name)
        for script in (ours[0].parents[2] / "bin").iterdir():
            if script.is_file() and script.read_bytes()[:2] == b"#!":
                text = script.read_text().replace(str(ours[0].parents[2]), str(self.tree / ".venv"))
                (self.python.parent / script.name).write_text(text)
                (self.python.parent / script.name).chmod(0o755)
        self.log = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{self.python.parent}:{os.environ['PATH']}"}
        command, pipe = [self.python, "-c", SERVER], subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=self.tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def try_one(self, mutation: Mutation) -> dict[str, object]:
        """Put the fault in, run its tests, and take it out."""
        path = self.tree / mutation.file
        text, times = path.read_text(), path.stat()
        path.write_text(mutation.applied(text))
        started = time.monotonic()
        try:
            caught, by = self.run(mutation.tests)
        finally:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return {"caught": caught, "by": by, "seconds": round(time.monotonic() - started, 1)}

    def run(self, tests: str) -> tuple[bool, str]:
        """Whether a test fails, and which; or why none did."""
        arguments = shlex.split(tests)
        marked = IN_MAKE_TEST
        if "-m" in arguments:
            at = arguments.index("-m")
            marked = f"({arguments[at + 1]}) and {marked}"
            del arguments[at : at + 2]
        arguments = [str(self.log), "-x", "-q", "-p", "no:cacheprovider", "-m", marked, *arguments]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(arguments), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        said = self.log.read_text()
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if code == 1 or (code in (2, 4) and found):
            return True, found[1] if found else "?"
        if code == 0:
            return False, (said.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"pytest ended with {code}: {arguments}\n{said}")

    def close(self) -> None:
        """End the server."""
        self.server.terminate()
        self.server.wait()
