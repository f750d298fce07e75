"""Checks that every C++ source is in a target of the configured build.

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


if __name__ == "__main__":
    known = compiled(sys.argv[1])
    finish([f"{f}: is in no target; list it in a CMakeLists.txt"
            for f in tracked(".cc", ".c", ".cpp", ".cu")
            if str((ROOT / f).resolve()) not in known])
