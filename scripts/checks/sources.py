"""What the checks beside it share: the tracked sources of this checkout."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tracked(*suffixes):
    """Tracked files (and new ones that git does not ignore) by suffix."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = sorted(set(n for n in names.split("\0") if n))
    return [f for f in files
            if (not suffixes or f.endswith(suffixes)) and (ROOT / f).is_file()]


def finish(problems):
    """Prints the problems and leaves with 1 if there are any."""
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)
