"""Runs clang-tidy, with clang's lock analysis, over the products of a build.

usage: tidy.py build/dev [JOBS]

A file that passed is not looked at again until it, a header of ours that it
includes, its flags or .clang-tidy change. Left out, for their cost: tests, and
the client where it takes no lock (a quarter of a minute for a file of flags).
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import subprocess
import sys

from sources import ROOT

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
# Clang would look for an OpenMP of its own.
EXTRA = ["-Wthread-safety", "-Wno-unknown-warning-option", "-fno-openmp"]


def digest_with_headers(path, seen):
    """Feeds the file and every header of this checkout below it into seen."""
    if path in seen or not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    seen[path] = hashlib.sha256(text.encode()).hexdigest()
    for header in INCLUDE.findall(text):
        digest_with_headers(ROOT / header, seen)


def key_of(entry):
    seen = {}
    digest_with_headers(pathlib.Path(entry["file"]), seen)
    parts = [entry["command"], (ROOT / ".clang-tidy").read_text(), *EXTRA]
    parts += [f"{path} {seen[path]}" for path in sorted(seen)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_one(build, stamps, entry):
    stamp = stamps / key_of(entry)
    if stamp.exists():
        return True
    command = ["clang-tidy", "--quiet", "-p", str(build),
               f"--header-filter={ROOT}/[a-z]+/.*"]
    command += [f"--extra-arg={flag}" for flag in EXTRA]
    result = subprocess.run(command + [entry["file"]], cwd=ROOT, text=True,
                            capture_output=True, check=False)
    if result.returncode == 0:
        stamp.touch()
        return True
    print(result.stdout or result.stderr, flush=True)
    return False


def is_wanted(build, entry):
    path = pathlib.Path(entry["file"])
    if path.is_relative_to(build) or path.is_relative_to(ROOT / "tests"):
        return False
    return not path.is_relative_to(ROOT / "client") or \
        "MutexLock" in path.read_text(encoding="utf-8")


def main(build, jobs):
    entries = [
        entry for entry in json.loads(
            (build / "compile_commands.json").read_text())
        if is_wanted(build, entry)
    ]
    stamps = build / "tidy"
    stamps.mkdir(exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        passed = list(pool.map(lambda e: run_one(build, stamps, e), entries))
    if all(passed):
        print(f"   ok      clang-tidy and lock analysis: {len(entries)} sources")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main((ROOT / sys.argv[1]).resolve(),
                  int(sys.argv[2]) if len(sys.argv) > 2 else 2))
