"""Checks the sizes of files and functions, and prints what stands out.

It relies on clang-format's Google style: a function at namespace level starts
in column 0 and ends with a `}` there; one inside a class, two columns in.
"""

import re

from sources import ROOT, finish, tracked

FILE_LINES = 800
FUNCTION_LINES = 60
KERNEL_FUNCTION_LINES = 120
CODE = (".cc", ".h", ".inc", ".cu", ".cuh")
RECORD = re.compile(r"\s*(template <|class|struct|enum|union|namespace|extern)\b")


def functions(lines):
    """Yields (line, count) of each function body, by indentation."""
    # By indentation, 0 and 2: where a declaration began, where a body did.
    declared, starts, in_record = {}, {}, False
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        level = 2 if in_record and indent >= 2 else 0
        if not line.strip() or line.startswith(("#", "//")):
            continue
        if line.strip().startswith("}") and indent == level:
            start = starts.pop(level, None)
            if start:
                yield start, number - start + 1
            continue
        if indent == level:
            declared[level] = None if RECORD.match(line) else number
        if indent == 0:
            in_record = bool(RECORD.match(line))
            starts.pop(2, None)
        opens = line.rstrip().endswith("{") and not line.rstrip().endswith("= {")
        if opens and level not in starts and declared.get(level):
            starts[level] = declared[level]


def check_file(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    problems = []
    if len(lines) > FILE_LINES:
        problems.append(
            f"{path}: {len(lines)} lines, at most {FILE_LINES}: split it")
    limit = KERNEL_FUNCTION_LINES if path.endswith(".cu") else FUNCTION_LINES
    if not path.startswith("tests/") and path.endswith(CODE):
        for start, count in functions(lines):
            if count > limit:
                problems.append(f"{path}:{start}: a function of {count} lines, "
                                f"at most {limit}: split it")
    return problems


if __name__ == "__main__":
    finish([p for f in tracked(*CODE, ".rs", ".py")
            for p in check_file(f)])
