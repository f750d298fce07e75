#!/usr/bin/env python3
"""One QLoRA run by transformers, PEFT and bitsandbytes, for comparison.

  peft_peer.py MODEL_DIR ADAPTER_DIR ROWS.jsonl --dtype float32|bfloat16
               --learning-rate X --steps N --threads N

Goes on from the adapter, all rows in every step, and prints one JSON object:
tokens per second of the fastest step after the first, peak resident bytes, each
step's loss, and the first's gradient norm.
"""

import argparse
import json
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging


def peak_bytes():
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def load(directory, adapter, dtype):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=quantization, dtype=dtype
    )
    model.config.use_cache = False
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("rows")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with open(args.rows, encoding="utf-8") as file:
        ids = torch.tensor([json.loads(line)["input_ids"] for line in file])
    model = load(args.model, args.adapter, getattr(torch, args.dtype))
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate, weight_decay=0.0)
    seconds, losses, norms = [], [], []
    for _ in range(args.steps):
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainable, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - begin)
    print(
        json.dumps(
            {
                "tokens_per_second": ids.numel() / min(seconds[1:]),
                "peak_bytes": peak_bytes(),
                "losses": losses,
                "grad_norm": norms[0],
            }
        )
    )


if __name__ == "__main__":
    main()
