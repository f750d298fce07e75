"""Calls the program nf4_tool of the build."""

import subprocess

import torch

import cluster


def run(command, elements, block, form, data):
    """Bytes in, bytes out; nf4_tool.cc says which."""
    return subprocess.run(
        [cluster.program("nf4_tool"), command, str(elements), str(block), form],
        input=data, stdout=subprocess.PIPE, check=True).stdout


def floats(data):
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def round_trip(weights, block, form):
    """What remains of float32 weights after quantizing them."""
    count = weights.numel()
    state = run("quantize", count, block, form, weights.numpy().tobytes())
    return floats(run("dequantize", count, block, form, state)).reshape(
        weights.shape)
