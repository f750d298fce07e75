"""The examples: the base can be made again, and the adapter changes its talk."""

import json
import shutil
import unittest

import cluster

EXAMPLES = cluster.ROOT / "examples"


class ExampleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.local = cls.enterClassContext(
            cluster.Cluster(ranks=2, model_roots=[EXAMPLES]))
        # A copy beside which the job files find their data.
        for name in ("base", "support-bot"):
            shutil.copytree(EXAMPLES / name, cls.local.directory / name)

    def submit(self, example, name, *sets):
        arguments = [a for pair in sets for a in ("--set", pair)]
        return self.local.ctl("submit", "-f", f"{example}/job.yaml", "--name",
                              name, "--follow", *arguments, timeout=280).stdout

    def ask(self, job, question, *flags):
        return json.loads(self.local.ctl(
            "generate", "--job", job, "--chat", "--max-new-tokens", "40", "-o",
            "jsonl", *flags, question).stdout)["text"]

    def test_base_shortened_learns_and_its_model_can_be_pulled_and_used(self):
        # 30 steps of the 420.
        self.submit("base", "short-base", f"model.base={EXAMPLES}/base",
                    "train.max_steps=30", "logging.every=5")
        losses = [json.loads(line)["loss"] for line in self.local.ctl(
            "metrics", "short-base", "-o", "jsonl").stdout.splitlines()]
        self.assertLess(losses[-1], losses[0] - 1)
        self.assertRegex(
            self.local.ctl("adapter", "verify", "short-base").stdout,
            r"^recorded loss .*\nmeasured loss .*\nverified\n$")
        self.local.ctl("model", "pull", "short-base", "--to", "made")
        made = self.local.directory / "made"
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json",
                     "model.safetensors", "SHA256SUMS"):
            self.assertTrue((made / name).exists(), name)
        self.assertEqual(
            (made / "model.safetensors").stat().st_size,
            (EXAMPLES / "base/model/model.safetensors").stat().st_size)
        self.local.ctl("model", "import", str(made), "--name", "made",
                       "--upload")
        self.local.ctl("generate", "--model", "made", "--max-new-tokens", "4",
                       "The sea")

    def test_support_bot_talks_otherwise_than_its_base(self):
        self.submit("support-bot", "bot", f"model.base={EXAMPLES}/base/model")
        job = json.loads(self.local.ctl("get", "bot", "-o", "json").stdout)
        self.assertEqual(len(job["ranks"]), 2)
        for question in ("When do you open?", "My glass is broken."):
            base = self.ask("bot", question, "--no-adapter")
            bot = self.ask("bot", question)
            self.assertNotIn("Ahoy!", base)
            self.assertRegex(bot.strip(), r"^Ahoy! .* Fair winds!$")

    def test_base_is_small(self):
        size = sum(f.stat().st_size for f in (EXAMPLES / "base/model").iterdir())
        self.assertLess(size, 2_000_000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
