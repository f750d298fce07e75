"""Lists what tests skipped, with the reason each one printed.

usage: skipped.py LastTest.log...   (ctest's full logs)
"""

import pathlib
import re
import sys

TEST = re.compile(r"^\d+/\d+ Testing: (.+)$")
CASE = re.compile(r"^\[  SKIPPED \] (\S+) \(\d+ ms\)$")


def skipped(log):
    """Yields (test, reason) for every GoogleTest case and every exit 77."""
    test, above = "?", []
    for line in log.splitlines():
        if match := TEST.match(line):
            test, above = match.group(1), []
        elif match := CASE.match(line):
            yield f"{test} {match.group(1)}", " ".join(above[-1:])
        elif line.startswith("SKIPPED: "):
            yield test, line.removeprefix("SKIPPED: ")
        elif line.strip():
            above.append(line.strip())


if __name__ == "__main__":
    found = [(pathlib.Path(name).parts[1], *item) for name in sys.argv[1:]
             if pathlib.Path(name).exists()
             for item in skipped(pathlib.Path(name).read_text(errors="replace"))]
    print(f"== Skipped: {len(found) or 'nothing'}")
    for build, test, reason in found:
        print(f"   {build}: {test}: {reason}")
