"""Calls the program quantize_tool of the build."""

import subprocess

import torch

import cluster


def run(command, kind, form, elements, block, data):
    """Bytes in, bytes out; quantize_tool.cc says which."""
    return subprocess.run(
        [cluster.program("quantize_tool"), command, kind, form, str(elements),
         str(block)],
        input=data, stdout=subprocess.PIPE, check=True).stdout


def floats(data):
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def round_trip(weights, kind, form, block):
    """What remains of float32 weights after quantizing them."""
    count = weights.numel()
    state = run("quantize", kind, form, count, block,
                weights.numpy().tobytes())
    return floats(run("dequantize", kind, form, count, block, state)).reshape(
        weights.shape)
