"""Where the programs and the reference data are."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("QLORA_BIN", ROOT / "build/dev/bin"))


def path(name):
    program = BIN / name
    if not program.exists():
        raise FileNotFoundError(f"{program}: run scripts/build first")
    return str(program)


def shared_data():
    """Models and data sets for tests, or None where they are not to be had."""
    directory = pathlib.Path(
        os.environ.get("QLORA_SHARED_DATA", ROOT.parent / "shared/data"))
    return directory if directory.is_dir() else None
