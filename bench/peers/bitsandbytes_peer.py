#!/usr/bin/env python3
"""Seconds that bitsandbytes' CPU path takes for NF4 with nested scales.

  bitsandbytes_peer.py ROWS COLUMNS BLOCK --threads N

Prints one JSON object: nf4_quantize (of float32) and nf4_dequantize_nested (to
bfloat16), the fastest of several runs.
"""

import argparse
import ctypes
import json
import time

import bitsandbytes.functional as bnb
import torch


def keep_freed_memory():
    """Results of this size would else be new pages each time, whose first
    touch takes longer than the work."""
    malloc_options = ctypes.CDLL(None).mallopt
    malloc_options(-4, 0)  # M_MMAP_MAX
    malloc_options(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def best_seconds(run, runs):
    run()
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("columns", type=int)
    parser.add_argument("block", type=int)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    weights = torch.randn(options.rows, options.columns) * 0.02

    def quantize(values):
        return bnb.quantize_4bit(values, blocksize=options.block,
                                 quant_type="nf4", compress_statistics=True)

    packed, state = quantize(weights.bfloat16())
    print(json.dumps({
        "nf4_quantize": best_seconds(lambda: quantize(weights), 3),
        "nf4_dequantize_nested": best_seconds(
            lambda: bnb.dequantize_4bit(packed, state), 20),
    }))


if __name__ == "__main__":
    main()
