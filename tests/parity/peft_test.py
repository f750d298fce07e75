"""PEFT loads the adapter of a finished 2-rank job and finds our loss with it."""

import json
import math
import pathlib
import unittest

import peft
import torch
import transformers

import cluster
import quantize_tool

TOLERANCE = 1e-4
JOB = """\
apiVersion: qlora/v1
model: {{base: {model}}}
method: {method}
lora: {{rank: 8, alpha: 16, target_modules: all-linear}}
data:
  train: [{{path: train.jsonl, format: tokens}}]
  eval: [{{path: eval.jsonl, format: tokens}}]
  max_seq_len: 128
  packing: {packing}
train: {{max_steps: 30, global_batch_size: 8, learning_rate: 5e-3, compute_dtype: float32}}
resources: {{devices_per_node: 2}}
"""


def rows(count, length, first):
    """Rows that a model can learn: arithmetic progressions modulo 500."""
    return [[1] + [(first + row * 31 + column * (row % 5 + 1)) % 500 + 3
                   for column in range(length - 1 - row % 7)]
            for row in range(count)]


def jsonl(all_rows):
    return "".join(json.dumps({"input_ids": row}) + "\n" for row in all_rows)


def mean_loss(model, all_rows):
    """Over the trained tokens of all rows, as eval.json has it."""
    # In eval mode bitsandbytes computes in bf16 where the CPU has it (measured:
    # 3e-3 in the loss). There is no dropout that training mode would turn on.
    model.train()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in all_rows:
            ids = torch.tensor([row])
            total += model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1)
            tokens += len(row) - 1
    return total / tokens, tokens


def load_base(model, **arguments):
    return transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", **arguments)


def with_our_nf4(model):
    """The base with each block linear through our nested NF4 and back."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.weight.data = quantize_tool.round_trip(
                module.weight.data.contiguous(), "nf4", "nested", 64)
    return model


def with_bitsandbytes(model):
    return load_base(model, quantization_config=transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=False))


@unittest.skipIf(cluster.shared_data() is None,
                 "shared/data is absent (set QLORA_SHARED_DATA)")
class PeftTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.models = cluster.shared_data() / "models"
        cls.eval_rows = rows(12, 96, 250)
        cls.cluster = cls.enterClassContext(
            cluster.Cluster(ranks=2, model_roots=[cls.models]))
        cls.cluster.write("train.jsonl", jsonl(rows(64, 100, 0)))
        cls.cluster.write("eval.jsonl", jsonl(cls.eval_rows))

    def train(self, name, model, method="qlora", packing="false", more=""):
        """Runs the job; returns where its adapter is and what it measured."""
        self.cluster.run(name, JOB.format(
            model=model, method=method, packing=packing) + more)
        adapter = self.cluster.directory / f"{name}-adapter"
        self.cluster.ctl("adapter", "pull", name, "--to", str(adapter))
        evaluation = json.loads((adapter / "eval.json").read_text())
        return adapter, evaluation

    def compare(self, base, adapter, evaluation):
        before, _ = mean_loss(base, self.eval_rows)
        loss, tokens = mean_loss(
            peft.PeftModel.from_pretrained(base, adapter), self.eval_rows)
        self.assertEqual(evaluation["tokens"], tokens)
        self.assertLess(abs(evaluation["loss"] - loss), TOLERANCE)
        # An adapter that did nothing would pass the line above.
        self.assertGreater(before - loss, 0.5)

    def test_qlora_with_nested_scales(self):
        model = self.models / "stories260K"
        adapter, evaluation = self.train("nested", model)
        self.compare(with_our_nf4(load_base(model)), adapter, evaluation)

    def test_qlora_on_what_bitsandbytes_loads(self):
        model = self.models / "llama2xs-281K"
        adapter, evaluation = self.train(
            "plain", model, more="quantization: {double_quant: false}\n")
        self.compare(with_bitsandbytes(model), adapter, evaluation)

    def test_packed_rows(self):
        model = self.models / "stories260K"
        adapter, evaluation = self.train("packed", model, packing="true")
        self.compare(with_our_nf4(load_base(model)), adapter, evaluation)

    def test_lora(self):
        model = self.models / "stories260K"
        adapter, evaluation = self.train("dense", model, method="lora")
        self.compare(load_base(model), adapter, evaluation)

    def test_keys_of_the_adapter_are_those_that_peft_writes(self):
        model = self.models / "stories260K"
        adapter, _ = self.train("keys", model)
        ours = json.loads((adapter / "adapter_config.json").read_text())
        saved = pathlib.Path(self.cluster.directory) / "saved-by-peft"
        peft.PeftModel.from_pretrained(
            load_base(model), adapter).save_pretrained(saved)
        theirs = json.loads((saved / "adapter_config.json").read_text())
        self.assertEqual(set(theirs) - set(ours), set())
        ours_weights = transformers.modeling_utils.load_state_dict(
            str(adapter / "adapter_model.safetensors"))
        their_weights = transformers.modeling_utils.load_state_dict(
            str(saved / "adapter_model.safetensors"))
        self.assertEqual(set(ours_weights), set(their_weights))
        self.assertTrue(all(math.isfinite(tensor.abs().sum())
                            for tensor in ours_weights.values()))


if __name__ == "__main__":
    unittest.main()
