#!/usr/bin/env python3
"""Seconds that bitsandbytes' CPU path takes for NF4 with nested scales.

  bitsandbytes_peer.py ROWS COLUMNS BLOCK --threads N

Reads lines, nf4_quantize (of float32) or nf4_dequantize_nested (to bfloat16),
and answers each with the seconds of the faster of two runs.
"""

import argparse
import ctypes
import sys
import time

import bitsandbytes.functional as bnb
import torch


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
    error = (bnb.dequantize_4bit(packed, state) - weights).abs().mean()
    if not error < 0.1 * weights.abs().mean():
        sys.exit(f"bitsandbytes gives back other weights: off by {error}")
    works = {
        "nf4_quantize": lambda: quantize(weights),
        "nf4_dequantize_nested": lambda: bnb.dequantize_4bit(packed, state),
    }
    for line in sys.stdin:
        work = works[line.strip()]
        print(min(seconds(work), seconds(work)), flush=True)


if __name__ == "__main__":
    main()
