#!/usr/bin/env python3
"""Prints golden.txt: quantized tensors in bitsandbytes' formats, for tests of
the kernels (tests/unit/kernels/golden_test.cc).

    tests/golden/quant/make.py > tests/golden/quant/golden.txt

It follows the published rules of bitsandbytes' CUDA kernels and nothing of
this repository's code: NF4 and FP4 blocks, plain and nested, the rows of
LLM.int8, 8-bit blocks of the dynamic maps. A float here holds a float32: the
product, sum and quotient of two, rounded to float64 and then to float32, are
what rounding once gives (float64 has more than 2 * 24 + 2 bits).

A line is a name and hexadecimal digits: bytes, float32 bits eight digits each,
or the 64-bit FNV-1a hash of values as they lie in memory (little-endian).
"""

import math
import struct
from fractions import Fraction

# The values of NF4's codes.
NF4 = [
    struct.unpack(">f", bytes.fromhex(bits))[0] for bits in (
        "bf800000", "bf3239b1", "bf066b30", "beca32a0", "be91a24d", "be3d353f",
        "bdba7871", "00000000", "3da2faff", "3e24cae3", "3e7c04dd", "3ead033a",
        "3ee1a4b8", "3f1007ab", "3f3913b3", "3f800000")
]
ROWS, COLUMNS = 5, 3329


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def rounded(exact):
    """A fraction as float32, rounded once."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2)**exponent
    steps = round(size / Fraction(2)**(exponent - 23))
    return math.copysign(math.ldexp(steps, exponent - 23), exact)


def fp16(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def bf16_bytes(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.pack("<H", (bits + 0x7fff + (bits >> 16 & 1)) >> 16)


STORE = {
    "float32": lambda x: struct.pack("<f", x),
    "bfloat16": bf16_bytes,
    "float16": lambda x: struct.pack("<e", x),
}

# FP4: a sign and one of eight magnitudes.
MAGNITUDES = [
    f32(x) for x in (0, 0.005208333333, 0.66666667, 1, 0.33333333, 0.5,
                     0.16666667, 0.25)
]
FP4 = MAGNITUDES + [-x for x in MAGNITUDES]


NF4_MIDDLES = [f32((low + high) / 2) for low, high in zip(NF4, NF4[1:])]


def nf4_code(x):
    return sum(x > middle for middle in NF4_MIDDLES)


def fp4_code(x):
    a, sign = abs(x), 8 if x < 0 else 0
    if a > f32(0.29166667):
        if a > f32(0.583333):
            return sign + (3 if a > f32(0.8333333) else 2)
        return sign + (5 if a > f32(0.4166667) else 4)
    if a > f32(0.0859375):
        return sign + (7 if a > f32(0.20833333) else 6)
    return sign + (1 if a > f32(0.00260417) else 0)


def linspace(steps):
    """torch.linspace(0.1, 1, steps) in float32: from both ends, multiply and
    add in one rounding."""
    start, end = f32(0.1), 1.0
    step = f32(f32(end - start) / (steps - 1))
    values = []
    for i in range(steps):
        if i < steps // 2:
            exact = Fraction(start) + Fraction(step) * i
        else:
            exact = Fraction(end) - Fraction(step) * (steps - 1 - i)
        values.append(rounded(exact))
    return values


def dynamic_map(signed):
    values = [0.0, 1.0]
    for i in range(7):
        edges = linspace(2**i + 1 if signed else 2**(i + 1) + 1)
        for low, high in zip(edges, edges[1:]):
            mean = f32(f32(low + high) / 2)
            value = f32(mean * f32(10.0**(i - 6)))
            values += [value, -value] if signed else [value]
    return sorted(values)


MAPS = {"signed": dynamic_map(True), "unsigned": dynamic_map(False)}


def nearest(values, x):
    """A halving search, then the nearer of its end and the neighbour."""
    pivot, low, high = 127, 0, 255
    for step in (64, 32, 16, 8, 4, 2, 1):
        if x > values[pivot]:
            low, pivot = pivot, pivot + step
        else:
            high, pivot = pivot, pivot - step
    if x > values[pivot]:
        middle = f32(f32(values[high] + values[pivot]) / 2)
        return high if x > middle else pivot
    middle = f32(f32(values[low] + values[pivot]) / 2)
    return low if x < middle else pivot


def blocks(values, size):
    return [values[i:i + size] for i in range(0, len(values), size)]


def scaled(block):
    """The scale of a block, and its elements by it."""
    scale = max(map(abs, block))
    reciprocal = f32(1 / scale)
    return scale, [f32(x * reciprocal) for x in block]


def quantize_map(values, x, size):
    scales, codes = [], []
    for block in blocks(x, size):
        scale, elements = scaled(block)
        scales.append(scale)
        codes += [nearest(values, element) for element in elements]
    return scales, codes


def inputs(n, seed):
    """Of a linear congruential generator, smaller in some blocks."""
    x, state = [], seed
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        x.append(math.ldexp((state >> 8) - 2**23, -24 - i // 64 % 5))
    return x


def put(name, data):
    print(name, bytes(data).hex())


def put_floats(name, values):
    put(name, b"".join(struct.pack(">f", x) for x in values))


def put_hashes(name, values):
    for dtype, store in STORE.items():
        value = 0xcbf29ce484222325
        for byte in b"".join(map(store, values)):
            value = (value ^ byte) * 0x100000001b3 % 2**64
        print(f"{name}_{dtype} {value:016x}")


def put_expanded(name, table, codes, absmax, size):
    put_hashes(name, [
        f32(table[code] * absmax[i // size]) for i, code in enumerate(codes)
    ])


def four_bits(name, table, code_of, size):
    absmax, codes = [], []
    for block in blocks(inputs(ROWS * COLUMNS, 1), size):
        scale, elements = scaled(block)
        absmax.append(scale)
        codes += map(code_of, elements)
    padded = codes + [code_of(0.0)] * (len(codes) % 2)
    put(f"{name}_codes",
        (high << 4 | low for high, low in zip(padded[::2], padded[1::2])))
    put_floats(f"{name}_absmax", absmax)
    put_expanded(f"{name}_plain", table, codes, absmax, size)
    offset = f32(math.fsum(absmax) / len(absmax))
    scales, absmax_codes = quantize_map(
        MAPS["signed"], [f32(a - offset) for a in absmax], 256)
    put(f"{name}_absmax_codes", absmax_codes)
    put_floats(f"{name}_absmax_scale", scales)
    put_floats(f"{name}_offset", [offset])
    back = [
        f32(f32(MAPS["signed"][code] * scales[i // 256]) + offset)
        for i, code in enumerate(absmax_codes)
    ]
    put_expanded(f"{name}_nested", table, codes, back, size)


def int8_rows():
    scales, codes, back = [], [], []
    for row in blocks(inputs(13 * 77, 2), 77):
        halves = [fp16(x) for x in row]
        scale = max(map(abs, halves))
        of_row = [round(Fraction(x) * 127 / Fraction(scale)) for x in halves]
        scales.append(scale)
        codes += of_row
        step = f32(7.874015718698502e-3)
        back += [f32(f32(code * scale) * step) for code in of_row]
    put("int8_codes", (code % 256 for code in codes))
    put_floats("int8_scale", scales)
    put_hashes("int8", back)


def dynamic(name):
    x = inputs(1000, 3)
    if name == "unsigned":
        x = [abs(value) for value in x]
    scales, codes = quantize_map(MAPS[name], x, 256)
    put_floats(f"{name}_map", MAPS[name])
    put(f"{name}_codes", codes)
    put_floats(f"{name}_scale", scales)
    put_hashes(name, [
        f32(MAPS[name][code] * scales[i // 256])
        for i, code in enumerate(codes)
    ])


def main():
    for size in (64, 4096):
        four_bits(f"nf4_{size}", NF4, nf4_code, size)
        four_bits(f"fp4_{size}", FP4, fp4_code, size)
    int8_rows()
    dynamic("signed")
    dynamic("unsigned")


if __name__ == "__main__":
    main()
