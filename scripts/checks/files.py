"""Checks what may be committed: small files, our own text, no leftovers."""

import re

from sources import ROOT, finish, tracked

MAX_BYTES = 2 * 1024 * 1024
# Other people's work comes as a pinned dependency, never as a copy.
FOREIGN = re.compile(r"copyright\s*(\(c\)|©|\d{4})", re.IGNORECASE)
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
SELF = "scripts/checks/files.py"


def check_file(name):
    path = ROOT / name
    problems = []
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return problems
    if name not in ("LICENSE", SELF) and not name.startswith("examples/"):
        for number, line in enumerate(text.splitlines(), 1):
            if FOREIGN.search(line):
                problems.append(f"{name}:{number}: carries a copyright notice; "
                                "depend on it instead of copying it")
            if LEFTOVER.search(line):
                problems.append(f"{name}:{number}: a leftover without an issue "
                                "number, write it as (#123)")
    if text and not text.endswith("\n"):
        problems.append(f"{name}: no newline at its end")
    return problems


def check_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text,
                        re.MULTILINE | re.DOTALL)
    if not section or "- " not in section.group(1):
        return ["CHANGELOG.md: no entry under '## Unreleased'"]
    return []


if __name__ == "__main__":
    finish([p for f in tracked() for p in check_file(f)] + check_changelog())
