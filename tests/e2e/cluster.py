"""A coordinator and a worker of this build, as `qloractl local start` makes them.

For the tests beside it and for tests/parity; standard library only.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("QLORA_BIN", ROOT / "build/dev/bin"))
DEPS = pathlib.Path(os.environ.get("QLORA_DEPS", ROOT / ".deps"))


def program(name):
    path = BIN / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: run scripts/build first")
    return str(path)


def shared_data():
    """Models and data sets for tests, or None where they are not to be had."""
    directory = pathlib.Path(
        os.environ.get("QLORA_SHARED_DATA", ROOT.parent / "shared/data"))
    return directory if directory.is_dir() else None


def token_rows(rows, columns):
    """A file of `format: tokens`: different rows for any model of 503 tokens."""
    return "\n".join(
        json.dumps({"input_ids": [1] + [(7 * row + column) % 500 + 3
                                        for column in range(columns - 1)]})
        for row in range(rows)) + "\n"


def skip(reason):
    """Ends the script so that ctest and scripts/test show it as skipped."""
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(77)


class Cluster:
    """Daemons in a directory of their own; a context manager.

    Nothing of it is left afterwards; the daemons' logs are printed if the body
    raised.
    """

    def __init__(self, ranks=1, model_roots=()):
        self._ranks = ranks
        self._roots = [str(root) for root in model_roots]

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="qlora-e2e-"))
        self.data = self.directory / "data"
        self._environment = dict(
            os.environ, HOME=str(self.directory), NO_COLOR="1",
            XDG_CONFIG_HOME=str(self.directory / "config"),
            XDG_STATE_HOME=str(self.directory / "state"))
        roots = [a for root in self._roots for a in ("--model-root", root)]
        try:
            self.ctl("local", "start", "--cpu-ranks", str(self._ranks),
                     "--data-dir", str(self.data), *roots)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        self.local = json.loads((self.data / "local.json").read_text())
        return self

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            for log in sorted(self.data.glob("*.log")):
                print(f"-- {log.name}\n{log.read_text(errors='replace')[-8000:]}")
        stopped = self.ctl("local", "stop", "--data-dir", str(self.data),
                           check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        if kind is None and stopped.returncode != 0:
            raise AssertionError(f"local stop: {stopped.stdout}")

    def ctl(self, *arguments, check=True, timeout=300):
        """Runs qloractl; stdout and stderr together are in .stdout."""
        result = subprocess.run(
            [program("qloractl"), *arguments], env=self._environment,
            cwd=self.directory, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
            check=False)
        if check and result.returncode != 0:
            raise AssertionError(
                f"qloractl {' '.join(arguments)}: exit {result.returncode}\n"
                f"{result.stdout}")
        return result

    def write(self, name, text):
        """A file beside the job files, e.g. a job file or a data set."""
        (self.directory / name).write_text(text, encoding="utf-8")
        return name

    def run(self, name, job_file):
        """Submits a job, waits for it and raises unless it succeeded."""
        self.write(f"{name}.yaml", job_file)
        return self.ctl("submit", "-f", f"{name}.yaml", "--name", name,
                        "--follow", timeout=600)
