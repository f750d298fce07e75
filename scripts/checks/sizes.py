"""Checks the sizes of files and functions, and prints what stands out.

It relies on clang-format's Google style: a function at namespace level starts
in column 0 and ends with a `}` there; one inside a class, two columns in.
"""

import re

from sources import ROOT, finish, tracked

FILE_LINES = 800
FUNCTION_LINES = 60
KERNEL_FUNCTION_LINES = 120
RECORD = re.compile(r"\s*(template <|class|struct|enum|union|namespace|extern)\b")


def functions(lines):
    """Yields (line, count) of each function body, by indentation."""
    starts = {}
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        if indent not in (0, 2) or not line.strip():
            continue
        stripped = line.strip()
        if stripped.startswith("}"):
            start = starts.pop(indent, None)
            if start:
                yield start, number - start + 1
        elif not re.match(r"(#|//|public:|private:|protected:)", stripped):
            opens = line.rstrip().endswith("{")
            if indent not in starts and opens:
                if not RECORD.match(line):
                    starts[indent] = number
                else:
                    starts.pop(indent, None)


def check_file(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    problems = []
    if len(lines) > FILE_LINES:
        problems.append(
            f"{path}: {len(lines)} lines, at most {FILE_LINES}: split it")
    limit = KERNEL_FUNCTION_LINES if path.endswith(".cu") else FUNCTION_LINES
    if not path.startswith("tests/") and path.endswith((".cc", ".h", ".cu")):
        for start, count in functions(lines):
            if count > limit:
                problems.append(f"{path}:{start}: a function of {count} lines, "
                                f"at most {limit}: split it")
    return problems


if __name__ == "__main__":
    finish([p for f in tracked(".cc", ".h", ".cu", ".rs", ".py")
            for p in check_file(f)])
