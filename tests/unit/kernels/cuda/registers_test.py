"""Checks that no CUDA kernel spills registers on any processor, in what ptxas
reported when they were compiled, and prints how many registers each takes."""

import os
import pathlib
import re
import sys

BUILD = pathlib.Path(os.environ["QLORA_BIN"]).parent
KERNEL = re.compile(r"entry function '(\S+)' for '(\S+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, "
                    r"(\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernels(report):
    """Yields (kernel, processor, bytes of stack and spills, registers)."""
    name, stack = None, 0
    for line in report.splitlines():
        if match := KERNEL.search(line):
            name = match.groups()
        elif match := SPILLS.search(line):
            stack = sum(map(int, match.groups()))
        elif (match := USED.search(line)) and name:
            yield *name, stack, int(match.group(1))
            name = None


def main():
    reports = sorted(BUILD.glob("kernels/*.ptxas"))
    found = [k for report in reports for k in kernels(report.read_text())]
    if not found:
        sys.exit(f"no report of ptxas in {BUILD / 'kernels'}")
    for name, processor, stack, registers in found:
        print(f"{processor} {registers:3} registers, {stack} bytes of stack "
              f"and spills: {name}")
    spilling = [k for k in found if k[2] > 0]
    print(f"{len(found)} kernels, {len(spilling)} of them spill, "
          f"at most {max(k[3] for k in found)} registers")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
