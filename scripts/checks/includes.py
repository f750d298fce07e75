"""Checks the directions of #include between modules.

Each module may include from itself and from what ALLOWED lists; a directory
belongs to the longest prefix in the table. LIBRARIES says which third-party
headers may be seen where. ARCHITECTURE.md gives the reasons.
"""

import re

from sources import ROOT, finish, tracked

COMMON = ["common/base", "common/formats", "common/spec"]
TRAINER = [
    "worker/trainer/data", "worker/trainer/ops", "worker/trainer/model",
    "worker/trainer/optim", "worker/trainer/parallel",
    "worker/trainer/checkpoint"
]
ALLOWED = {
    "proto": [],
    "common/base": [],
    "common/daemon": ["common/base"],
    "common/formats": ["common/base"],
    "common/spec": ["common/base", "common/formats"],
    "kernels": [],
    "server": COMMON + ["common/daemon", "proto"],
    "client": COMMON + ["proto"],
    "worker/frames": ["common/base", "proto"],
    "worker/agent": COMMON + ["common/daemon", "proto", "worker/frames"],
    "worker/text": ["common/base", "common/formats"],
    "worker/trainer/data": COMMON + ["worker/text"],
    "worker/trainer/ops": COMMON + ["kernels"],
    "worker/trainer/optim": COMMON + ["kernels"],
    "worker/trainer/model": COMMON + [
        "kernels", "worker/trainer/data", "worker/trainer/ops"],
    "worker/trainer/parallel": COMMON + ["kernels", "worker/trainer/model"],
    "worker/trainer/checkpoint": COMMON + [
        "worker/trainer/data", "worker/trainer/model"],
    "worker/trainer": COMMON + TRAINER + [
        "kernels", "proto", "worker/frames", "worker/text"],
}
# Contracts between the parts of the trainer: any of them may include these.
TRAINER_CONTRACTS = [
    "worker/trainer/run_op.h", "worker/trainer/torch_guard.h",
    "worker/trainer/data/batch.h",
    "worker/trainer/model/weights.h", "worker/trainer/parallel/aligned_buffer.h"
]
# Everything may be tested and measured; nothing may include these.
LEAVES = ["tests", "bench"]

GRPC = r"grpc(pp)?/|.*\.grpc\.pb\.h"
TENSOR = r"(ATen|c10|torch|gloo)/"
PROTO = r"(qlora/v1|google/protobuf)/"
# (directory, headers that must not be seen below it, reason)
LIBRARIES = [
    ("common", f"{GRPC}|{TENSOR}|{PROTO}", "common knows neither wire nor tensors"),
    ("kernels", f"{GRPC}|{TENSOR}|{PROTO}|absl/", "kernels see raw pointers only"),
    ("server", TENSOR, "the coordinator never links LibTorch"),
    ("client", TENSOR, "the client never links LibTorch"),
    ("worker/agent", TENSOR, "the agent never links LibTorch"),
    ("worker/trainer", GRPC, "a rank never links gRPC"),
]
# Headers that a trainer built on another tensor library shares.
NEUTRAL = re.compile(
    r"worker/trainer/((data|optim|checkpoint|parallel)/[^/]+"
    r"|model/(model|weights))\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def module_of(path):
    found = [m for m in list(ALLOWED) + LEAVES if path.startswith(m + "/")]
    return max(found, key=len, default=None)


def check_project_include(module, header):
    target = "proto" if re.match(PROTO, header) else module_of(header)
    if target is None or target == module or \
            header in TRAINER_CONTRACTS and module in TRAINER:
        return None
    if target in LEAVES:
        return f"nothing includes from {target}/"
    if module in LEAVES or target in ALLOWED[module]:
        return None
    return f"{module} may not include from {target}"


def check_library_include(path, header):
    for directory, pattern, reason in LIBRARIES:
        if path.startswith(directory + "/") and re.match(pattern, header):
            return reason
    if NEUTRAL.match(path) and re.match(TENSOR, header):
        return "this header is shared with trainers of other tensor libraries"
    return None


def check_file(path):
    module = module_of(path)
    if module is None:
        return [f"{path}: belongs to no module; add it to {__file__}"]
    problems = []
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    if path.endswith(".h") and "#pragma once" not in lines and \
            not path.startswith("worker/text/"):
        problems.append(f"{path}: lacks #pragma once")
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        header = match.group(2)
        reason = check_project_include(module, header) or \
            check_library_include(path, header)
        if reason:
            problems.append(f"{path}:{number}: {header}: {reason}")
    return problems


if __name__ == "__main__":
    finish([p for f in tracked(".cc", ".h", ".inc", ".cu", ".cuh") for p in check_file(f)])
