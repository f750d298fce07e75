"""Checks that every C++ source is in a target of the configured build.

A source that this machine's build leaves out for another one (no_cuda.cc) has
to be named in a CMakeLists.txt above it.

usage: unlisted.py build/dev
"""

import json
import pathlib
import sys

from sources import ROOT, finish, tracked


def compiled(build):
    database = ROOT / build / "compile_commands.json"
    if not database.exists():
        finish([f"{database} is missing: configure the build first"])
    return {
        str(pathlib.Path(entry["file"]).resolve())
        for entry in json.loads(database.read_text())
    }


def named_above(path):
    """True if a CMakeLists.txt of the file's directory or above names it."""
    source = ROOT / path
    lists = [d / "CMakeLists.txt" for d in source.parents if d != ROOT.parent]
    return any(source.name in file.read_text(encoding="utf-8")
               for file in lists if file.is_relative_to(ROOT) and file.exists())


if __name__ == "__main__":
    known = compiled(sys.argv[1])
    finish([f"{f}: is in no target; list it in a CMakeLists.txt"
            for f in tracked(".cc", ".c", ".cpp", ".cu")
            if str((ROOT / f).resolve()) not in known and not named_above(f)])
