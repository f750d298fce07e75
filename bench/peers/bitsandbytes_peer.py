#!/usr/bin/env python3
"""Seconds that bitsandbytes takes for NF4 with nested scales.

  bitsandbytes_peer.py ROWS COLUMNS BLOCK [--device cuda] --threads N

Reads lines, nf4_quantize (of float32; only on the CPU) or nf4_dequantize_nested
(to bfloat16), and answers each with the seconds of the fastest run, or with the
reason if this Python cannot do it.
"""

import argparse
import ctypes
import sys
import time

import bitsandbytes.functional as bnb
import torch

# Buffers rotate on a device, so that its caches hold nothing of the run before.
ROTATED_BYTES = 512 << 20


def keep_freed_memory():
    """Results of this size would else be new pages each time, whose first
    touch takes longer than the work."""
    malloc_options = ctypes.CDLL(None).mallopt
    malloc_options(-4, 0)  # M_MMAP_MAX
    malloc_options(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def quantize(values, block):
    return bnb.quantize_4bit(values, blocksize=block, quant_type="nf4",
                             compress_statistics=True)


def checked(packed, state, weights):
    """The pair, which must give the weights back."""
    error = (bnb.dequantize_4bit(packed, state) - weights).abs().mean()
    if not error < 0.1 * weights.abs().mean():
        sys.exit(f"bitsandbytes gives back other weights: off by {error}")
    return packed, state


def cpu_works(weights, block):
    keep_freed_memory()
    packed, state = checked(*quantize(weights.bfloat16(), block), weights)

    def timed(run):
        return lambda: min(seconds(run), seconds(run))

    return {
        "nf4_quantize": timed(lambda: quantize(weights, block)),
        "nf4_dequantize_nested": timed(
            lambda: bnb.dequantize_4bit(packed, state)),
    }


def graph_seconds(runs):
    """Seconds of one of the runs on the device, the fastest of five rounds
    after one to warm up. They are replayed from a graph: Python takes longer to
    launch a kernel than it runs."""
    for run in runs:
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    rounds = []
    for _ in range(6):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        rounds.append(begin.elapsed_time(end) / 1e3 / len(runs))
    return min(rounds[1:])


def cuda_works(weights, block):
    weights = weights.cuda()
    runs = []
    for _ in range(-(-ROTATED_BYTES // (2 * weights.numel()))):
        packed, state = checked(*quantize(weights.bfloat16(), block), weights)
        out = torch.empty_like(weights, dtype=torch.bfloat16)
        # Three launches: the scales' codes, their offset, the weights.
        runs.append(lambda packed=packed, state=state, out=out:
                    bnb.dequantize_4bit(packed, state, out=out))
    return {"nf4_dequantize_nested": lambda: graph_seconds(runs)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("columns", type=int)
    parser.add_argument("block", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    works = {}
    if options.device == "cpu" or torch.cuda.is_available():
        weights = torch.randn(options.rows, options.columns) * 0.02
        make = cpu_works if options.device == "cpu" else cuda_works
        works = make(weights, options.block)
    for line in sys.stdin:
        work = works.get(line.strip())
        print(work() if work else "the peer's Python has no CUDA", flush=True)


if __name__ == "__main__":
    main()
