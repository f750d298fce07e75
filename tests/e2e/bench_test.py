"""The benchmark program: every op agrees with its peer, every row is whole."""

import json
import pathlib
import subprocess
import tempfile
import unittest

import cluster

ROWS = ("nf4_dequantize_nested", "nf4_quantize", "rms_norm", "gated_activation",
        "rotary", "adamw", "head_loss_f32", "head_loss_bf16", "attention_f32",
        "attention_bf16")
# Beside LibTorch; bitsandbytes is not there.
PEERLESS = ROWS[:2]


def bench(*arguments):
    return subprocess.run([cluster.program("qlora_bench"), *arguments],
                          capture_output=True, text=True, timeout=280)


class BenchTest(unittest.TestCase):
    def test_every_cpu_row_passes_its_check_and_is_whole(self):
        with tempfile.TemporaryDirectory(prefix="qlora-e2e-") as directory:
            file = pathlib.Path(directory, "rows.json")
            result = bench("kernels/cpu", "--turns", "1", "--json", str(file))
            self.assertEqual(result.returncode, 0, result.stderr)
            run = json.loads(file.read_text())
        self.assertEqual(run["command"], "qlora_bench kernels/cpu --turns 1")
        self.assertTrue(run["machine"])
        self.assertTrue(run["commit"])
        rows = {row["name"]: row for row in run["rows"]}
        for name in ROWS:
            row = rows[f"kernels/cpu/{name}"]
            self.assertIn(f"kernels/cpu/{name} ", result.stdout)
            self.assertGreater(row["value"], 0, name)
            self.assertGreater(row["limit_share"], 0, name)
            if name in PEERLESS:
                self.assertIsNone(row["ratio"], name)
            else:
                self.assertAlmostEqual(row["value"] / row["peer_value"],
                                       row["ratio"], msg=name)
        for limit in ("copy", "write", "read", "gemm/float32", "gemm/bfloat16"):
            self.assertGreater(rows[f"machine/{limit}"]["value"], 0, limit)

    def test_rows_of_a_missing_device_are_named(self):
        result = bench("kernels/cuda/adamw")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"(skipped )?kernels/cuda/adamw")

    def test_unknown_row(self):
        result = bench("kernels/cpu/warp")
        self.assertEqual(result.returncode, 1)
        self.assertIn("no row's name has 'kernels/cpu/warp'", result.stderr)


if __name__ == "__main__":
    unittest.main()
