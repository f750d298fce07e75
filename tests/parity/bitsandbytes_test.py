"""bitsandbytes' tensors, as its CPU library writes and reads them, against our
kernels. They follow its CUDA rules: docs/formats/bitsandbytes.md says where its
CPU library deviates, and what is left out here for it."""

import unittest

import bitsandbytes.functional as bnb
import torch

from quantize_tool import floats, run

TYPES = ("nf4", "fp4")
BLOCKS = (32, 64, 128, 256, 4096)


def random_weights(rows, columns):
    generator = torch.Generator().manual_seed(rows * 10007 + columns)
    return torch.randn(rows, columns, generator=generator) * 0.02


def codes(data, kind):
    """One a byte. Of FP4 -0 (code 8) is taken for 0: its CPU library has one
    zero."""
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    unpacked = torch.stack([packed >> 4, packed & 15])
    if kind == "fp4":
        unpacked[unpacked == 8] = 0
    return unpacked


class FourBitTest(unittest.TestCase):
    SHAPES = [(64, 64), (192, 64), (64, 192), (96, 208), (5, 7), (576, 1536)]

    def test_codes_and_scales_are_equal(self):
        for rows, columns in self.SHAPES:
            for block in BLOCKS:
                for kind in TYPES:
                    with self.subTest(rows=rows, columns=columns, block=block,
                                      kind=kind):
                        self.compare_codes(random_weights(rows, columns),
                                           block, kind)

    def compare_codes(self, weights, block, kind):
        packed, state = bnb.quantize_4bit(
            weights, blocksize=block, quant_type=kind,
            compress_statistics=False)
        count = weights.numel()
        ours = run("quantize", kind, "plain", count, block,
                   weights.numpy().tobytes())
        code_bytes = (count + 1) // 2
        self.assertTrue(torch.equal(
            codes(ours[:code_bytes], kind),
            codes(packed.numpy().tobytes()[:code_bytes], kind)))
        torch.testing.assert_close(
            floats(ours[code_bytes:]), state.absmax, rtol=0, atol=0)

    def test_plain_state_dequantizes_alike(self):
        for kind in TYPES:
            weights = random_weights(576, 1536)
            packed, state = bnb.quantize_4bit(
                weights, blocksize=64, quant_type=kind,
                compress_statistics=False)
            data = packed.numpy().tobytes() + state.absmax.numpy().tobytes()
            self.compare_values(kind, "plain", 64, data, packed, state)

    def test_nested_state_dequantizes_alike(self):
        # Shapes where its CPU dequantization is right: rows that are a
        # multiple of the block.
        for rows, columns in [(64, 256), (576, 1536), (256, 512)]:
            for block in (32, 64, 128, 256):
                for kind in TYPES:
                    with self.subTest(rows=rows, columns=columns, block=block,
                                      kind=kind):
                        self.compare_nested(random_weights(rows, columns),
                                            block, kind)

    def compare_nested(self, weights, block, kind):
        packed, state = bnb.quantize_4bit(
            weights, blocksize=block, quant_type=kind,
            compress_statistics=True)
        data = b"".join([
            packed.numpy().tobytes(), state.absmax.numpy().tobytes(),
            state.state2.absmax.numpy().tobytes(),
            state.offset.float().numpy().tobytes()])
        self.compare_values(kind, "nested", block, data, packed, state)

    def compare_values(self, kind, form, block, data, packed, state):
        theirs = bnb.dequantize_4bit(packed, state).flatten()
        ours = floats(run("dequantize", kind, form, theirs.numel(), block,
                          data))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)

    def test_our_nested_scales_are_close_to_its_own(self):
        # Its CPU library quantizes scales near zero by a coarser table than the
        # CUDA rule that we follow: some 0.2 % of the scales' codes differ by
        # one (measured here: 2e-4 in the values' norm; NF4's own error is 9e-2).
        weights = random_weights(576, 1536)
        packed, state = bnb.quantize_4bit(
            weights, blocksize=64, quant_type="nf4", compress_statistics=True)
        theirs = bnb.dequantize_4bit(packed, state).flatten()
        quantized = run("quantize", "nf4", "nested", weights.numel(), 64,
                        weights.numpy().tobytes())
        ours = floats(run("dequantize", "nf4", "nested", weights.numel(), 64,
                          quantized))
        self.assertLess((ours - theirs).norm() / theirs.norm(), 1e-3)


class Int8RowsTest(unittest.TestCase):

    def test_scales_and_values_are_equal_and_codes_nearly(self):
        for rows, columns in [(3, 5), (64, 192), (96, 1000)]:
            with self.subTest(rows=rows, columns=columns):
                self.compare(random_weights(rows, columns))

    def compare(self, weights):
        rows, columns = weights.shape
        count = weights.numel()
        theirs, scale, _ = bnb.int8_vectorwise_quant(weights.half())
        ours = run("quantize", "int8", "rows", count, columns,
                   weights.numpy().tobytes())
        self.assertEqual(ours[count:], scale.numpy().tobytes())
        # On a CPU it multiplies by 127 * (1 / scale), not by 127 / scale: codes
        # differ by one where the product is next to a half.
        mine = torch.frombuffer(bytearray(ours[:count]), dtype=torch.int8)
        difference = (mine.int() - theirs.flatten().int()).abs()
        self.assertLessEqual(difference.max(), 1)
        self.assertLess((difference > 0).float().mean(), 1e-3)
        state = theirs.numpy().tobytes() + scale.numpy().tobytes()
        values = floats(run("dequantize", "int8", "rows", count, columns,
                            state)).reshape(rows, columns)
        torch.testing.assert_close(
            values, bnb.int8_vectorwise_dequant(theirs, scale), rtol=0, atol=0)


class DynamicTest(unittest.TestCase):

    def test_values_are_equal_and_codes_nearly(self):
        for is_signed in (True, False):
            for block in (64, 256, 4096):
                with self.subTest(signed=is_signed, block=block):
                    self.compare(is_signed, block)

    def compare(self, is_signed, block):
        x = random_weights(100, 777)
        if not is_signed:
            x = x.square()
        code = bnb.create_dynamic_map(signed=is_signed)
        packed, state = bnb.quantize_blockwise(x, code=code, blocksize=block)
        form = "signed" if is_signed else "unsigned"
        ours = run("quantize", "dynamic", form, x.numel(), block,
                   x.numpy().tobytes())
        torch.testing.assert_close(
            floats(ours[x.numel():]), state.absmax, rtol=0, atol=0)
        theirs = bnb.dequantize_blockwise(packed, state).flatten()
        values = floats(run(
            "dequantize", "dynamic", form, x.numel(), block,
            packed.numpy().tobytes() + state.absmax.numpy().tobytes()))
        torch.testing.assert_close(values, theirs, rtol=0, atol=0)
        # Its table has steps of 3e-5 of the scale; ours are nearest.
        nearest = floats(run("dequantize", "dynamic", form, x.numel(), block,
                             ours))
        flat = x.flatten()
        scale = state.absmax.repeat_interleave(block)[:x.numel()]
        self.assertTrue(torch.all((nearest - flat).abs() <=
                                  (theirs - flat).abs() + scale * 1e-7))
        self.assertTrue(torch.all((nearest - theirs).abs() <= scale * 0.02))
        different = (torch.frombuffer(bytearray(ours[:x.numel()]),
                                      dtype=torch.uint8) != packed.flatten())
        self.assertLess(different.float().mean(), 0.05)


if __name__ == "__main__":
    unittest.main()
