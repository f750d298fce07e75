"""qloractl against real daemons: what a user types, and what wrong input gets."""

import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import time
import unittest

import cluster

ROWS = "\n".join(
    json.dumps({"text": f"Row {row} tells about the sea and the bread."})
    for row in range(24)) + "\n"
JOB = f"""\
apiVersion: qlora/v1
name: NAME
model: {{base: {cluster.ROOT}/examples/base/model}}
method: lora
lora: {{rank: 4}}
data: {{train: [{{path: rows.jsonl, format: text}}], max_seq_len: 64}}
train: {{max_steps: STEPS, global_batch_size: 2, learning_rate: 1e-3}}
resources: {{device: cpu}}
"""
# More steps than any test waits for.
LONG = 1_000_000


def job(name, steps):
    return JOB.replace("NAME", name).replace("STEPS", str(steps))


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.local = cls.enterClassContext(
            cluster.Cluster(ranks=2, model_roots=[cluster.ROOT / "examples"]))
        cls.local.write("rows.jsonl", ROWS)

    def ctl(self, *arguments, code=0, timeout=120):
        result = self.local.ctl(*arguments, check=False, timeout=timeout)
        self.assertEqual(result.returncode, code,
                         f"qloractl {' '.join(arguments)}\n{result.stdout}")
        return result.stdout

    def refused(self, *arguments, code, error, hint="hint: "):
        """The command fails in the documented form."""
        text = self.ctl(*arguments, code=code)
        self.assertRegex(text, r"(?m)^error: ")
        self.assertIn(error, text)
        self.assertIn(hint, text)

    def submit(self, name, steps):
        self.local.write(f"{name}.yaml", job(name, steps))
        self.ctl("submit", "-f", f"{name}.yaml")
        return json.loads(self.ctl("get", name, "-o", "json"))["jobId"]

    def await_state(self, name, state):
        for _ in range(600):
            found = json.loads(self.ctl("get", name, "-o", "json"))
            if found["state"] == f"JOB_STATE_{state}":
                return found
            time.sleep(0.1)
        raise AssertionError(f"{name} is {found['state']}, not {state}")

    # -- one job from beginning to end ---------------------------------------

    def test_job_piped_plain_lines_and_all_views(self):
        self.local.write("whole.yaml", job("whole", 6))
        text = self.ctl("submit", "-f", "whole.yaml", "--follow")
        self.assertNotIn("\x1b", text)
        self.assertEqual(len(re.findall(r"(?m)^step \d/6 loss ", text)), 6)
        self.assertRegex(text, r"SUCCEEDED j-\w{12} after .*: 6 steps, loss ")
        self.assertRegex(text, r"next: qloractl adapter pull j-\w{12} --to ")
        found = json.loads(self.ctl("get", "whole", "-o", "json"))
        name = found["jobId"]
        self.assertEqual(found["state"], "JOB_STATE_SUCCEEDED")
        # The same job by prefix, by id and as the newest one.
        for way in (name[:8], name, "@last"):
            self.assertIn(name, self.ctl("get", way))
        self.assertIn("whole", self.ctl("list", "--state", "succeeded"))
        self.assertNotIn("whole", self.ctl("list", "--state", "failed"))
        self.assertEqual(self.ctl("list", "-o", "name", "--limit", "1").count(
            "\n"), 1)
        self.assertIn("adapter_model.safetensors", self.ctl("describe", name))
        self.assertIn("rank", self.ctl("logs", name))
        self.assertRegex(self.ctl("events", name), r"Queued|Placed|Started")
        csv = self.ctl("metrics", name, "-o", "csv").splitlines()
        self.assertEqual(len(csv), 7)
        steps = [json.loads(line)["step"] for line in
                 self.ctl("metrics", name, "-o", "jsonl").splitlines()]
        self.assertEqual(steps, [1, 2, 3, 4, 5, 6])
        self.assertIn("learning rate", self.ctl("plot", name))
        self.assertEqual(json.loads(self.ctl("plot", name, "-o", "json")),
                         json.loads(self.ctl("metrics", name, "-o", "json")))
        self.assertEqual(self.ctl("-o", "jsonl", "metrics", name),
                         self.ctl("metrics", name, "-o", "jsonl"))
        self.assertEqual(json.loads(self.ctl(
            "list", "--label", "no=such", "-o", "json")), {"jobs": []})
        self.assertIn(name, self.ctl("adapter", "list"))
        self.assertIn("STEP", self.ctl("checkpoint", "list", name))
        self.ctl("wait", name)

    def test_adapter_pulled_verified_and_used(self):
        self.local.write("pulled.yaml", job("pulled", 4))
        self.ctl("submit", "-f", "pulled.yaml", "--follow")
        self.ctl("adapter", "pull", "pulled", "--to", "out")
        out = self.local.directory / "out"
        sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out,
                              capture_output=True, text=True, check=False)
        self.assertEqual(sums.returncode, 0, sums.stdout)
        self.refused("adapter", "pull", "pulled", "--to", "out", code=7,
                     error="will not write to out", hint="--force")
        self.ctl("adapter", "pull", "pulled", "--to", "out", "--force")
        self.refused("model", "pull", "pulled", "--to", "m", code=7,
                     error="made no whole model", hint="qloractl adapter pull")
        self.assertIn("verified", self.ctl("adapter", "verify", "pulled"))
        text = self.ctl("generate", "--job", "pulled", "--compare",
                        "--max-new-tokens", "8", "Tern Harbour is")
        self.assertRegex(text, r"(?s)> Tern.*base: .*adapter: ")
        again = [json.loads(self.ctl(
            "generate", "--job", "pulled", "--seed", "7", "--temperature", "1",
            "--max-new-tokens", "8", "-o", "jsonl", "The sea")) for _ in "12"]
        self.assertEqual(again[0], again[1])

    def test_plan_counts_steps_and_memory(self):
        self.local.write("planned.yaml", job("planned", 7))
        plan = json.loads(self.ctl("plan", "-f", "planned.yaml", "-o", "json"))
        self.assertEqual(plan["totalSteps"], "7")
        self.assertGreater(int(plan["memoryBytesPerRank"]), 0)
        self.assertEqual(plan["fitsOn"], ["local"])
        self.assertEqual(self.ctl("list", "-o", "name").count("planned"), 0)

    def test_registries(self):
        self.ctl("dataset", "push", "rows.jsonl", "--name", "rows")
        self.assertIn("rows", self.ctl("dataset", "list"))
        self.assertIn("sha256", self.ctl("dataset", "inspect", "rows"))
        self.ctl("model", "import", str(cluster.ROOT / "examples/base/model"),
                 "--name", "tiny")
        self.assertIn("llama", self.ctl("model", "list"))
        self.assertIn("hidden_size", self.ctl("model", "inspect", "tiny"))
        self.local.write("named.yaml", job("named", 3))
        self.ctl("submit", "-f", "named.yaml", "--follow", "--set",
                 "data.train.0.path=dataset:rows", "--set", "model.base=tiny")
        self.ctl("dataset", "delete", "rows")
        self.refused("dataset", "inspect", "rows", code=3, error="rows")
        self.refused("model", "pull", "tiny", "--to", "tiny-out", code=7,
                     error="tiny was imported by reference",
                     hint=f"its files lie in {cluster.ROOT}/examples/base/model")
        self.refused("generate", "--model", "zzz", "x", code=6,
                     error="cannot generate with --model zzz\ncause: model: no "
                           "model", hint="qloractl model list")
        self.ctl("model", "delete", "tiny")
        self.refused("model", "inspect", "tiny", code=3, error="tiny")
        self.assertIn("READY", self.ctl("node", "list"))
        self.refused("node", "remove", "local", code=7,
                     error="cannot remove node local\ncause: node local is "
                           "connected", hint="qloractl node list")
        self.refused("node", "remove", "gone", code=3,
                     error="cannot remove node gone")

    def test_dataset_names_are_not_replaced_by_accident(self):
        self.local.write("Words.jsonl", ROWS)
        self.assertRegex(self.ctl("dataset", "push", "Words.jsonl"), r"\nwords ")
        self.assertIn("words has this content already",
                      self.ctl("dataset", "push", "Words.jsonl"))
        self.local.write("Words.jsonl", ROWS + ROWS)
        self.refused("dataset", "push", "Words.jsonl", code=7,
                     error="will not replace dataset words", hint="--replace")
        self.ctl("dataset", "push", "Words.jsonl", "--replace")
        self.refused("dataset", "push", ".", code=6, error="cannot push .",
                     hint="is a directory")
        self.local.write("nothing.jsonl", "\n\n")
        self.refused("dataset", "push", "nothing.jsonl", code=6,
                     error="cannot push nothing.jsonl",
                     hint="has only blank lines")
        self.local.write("odd.jsonl", ROWS + '{"txt": "a"}\n{"text": 3\n')
        self.refused("dataset", "push", "odd.jsonl", code=6,
                     error="cannot push odd.jsonl\ncause: odd.jsonl:25: has the "
                           "keys of no format",
                     hint="\n       odd.jsonl:26: not valid JSON")
        self.ctl("dataset", "push", "odd.jsonl", "--allow-bad")
        self.refused("dataset", "push", "rows.jsonl", "--name", "Bad Name",
                     code=2, error="for instance bad-name", hint="--help")
        self.refused("dataset", "push", "none.jsonl", code=3,
                     error="cannot push none.jsonl", hint="no such file")

    def test_model_directories_as_people_call_them(self):
        model = self.local.directory / "My Tiny-Model"
        shutil.copytree(cluster.ROOT / "examples/base/model", model)
        self.assertIn("my-tiny-model", self.ctl(
            "model", "import", "My Tiny-Model", "--upload"))
        self.assertIn("digests checked", self.ctl(
            "model", "pull", "my-tiny-model", "--to", "pulled-model"))
        # Below none of the roots: what to type to allow it.
        self.refused("model", "import", "My Tiny-Model", code=6,
                     error="under none of the model roots",
                     hint=f"hint: qloractl local stop --data-dir "
                          f"{self.local.data}; qloractl local start --data-dir "
                          f"{self.local.data} --cpu-ranks 2 --model-root "
                          f"{cluster.ROOT}/examples --model-root '{model}'")
        # What is no model is no root either.
        self.refused("model", "import", "/etc", code=6,
                     error="under none of the model roots",
                     hint="/etc is no model, it has no config.json")
        # A directory that is not there is not to be allowed, but corrected.
        self.local.write("gone.yaml", job("gone", 2).replace(
            f"{cluster.ROOT}/examples/base/model", "/nope/model"))
        self.refused("submit", "-f", "gone.yaml", code=6,
                     error="the job was not accepted",
                     hint="correct the path: there is no /nope/model on this")
        (model / "model.safetensors").write_bytes(b"\x7f" * 8 + b"{}")
        text = self.ctl("model", "import", "My Tiny-Model", "--name", "broken",
                        "--upload", code=6)
        self.assertIn("cause: My Tiny-Model/model.safetensors: ", text)
        self.assertNotIn("artifacts", text)

    def test_version_of_both_sides(self):
        text = self.ctl("version")
        self.assertRegex(text, r"client +[0-9.]+\ncoordinator +[0-9.]+ \(127\.")
        versions = json.loads(self.ctl("version", "-o", "json"))
        self.assertEqual(versions["client"], versions["coordinator"])
        alone = self.ctl("version", "--endpoint", "127.0.0.1:1")
        self.assertIn("coordinator  unknown: ", alone)

    # -- how jobs end --------------------------------------------------------

    def test_cancel_and_wait(self):
        self.submit("cancelled", LONG)
        self.await_state("cancelled", "RUNNING")
        self.refused("logs", "cancelled", "--rank", "1", code=6,
                     error="has no rank 1", hint="it has 1 rank: 0")
        self.ctl("wait", "cancelled", "--timeout", "1s", code=101)
        self.assertRegex(self.ctl("cancel", "cancelled"), "CANCELL")
        self.ctl("wait", "cancelled", "--timeout", "60s", code=103)

    def test_delete_while_running_leaves_nothing(self):
        name = self.submit("deleted", LONG)
        self.await_state("deleted", "RUNNING")
        self.assertIn("deleted", self.ctl("delete", "deleted"))
        self.refused("get", name, code=3, error=name, hint="qloractl list")
        self.submit("after", 2)
        self.ctl("wait", "after", "--timeout", "90s")

    def test_bad_data_line_fails_the_job_and_names_it(self):
        self.local.write("rows-bad.jsonl", ROWS + '{"text": 3\n')
        self.local.write("bad.yaml", job("bad", 3).replace("rows.jsonl",
                                                           "rows-bad.jsonl"))
        text = self.ctl("submit", "-f", "bad.yaml", "--follow", code=100)
        self.assertIn("FAILED", text)
        self.assertRegex(text, r"(?m)^rows-bad\.jsonl:25: not valid JSON")
        # The log says no more than this.
        self.assertNotIn("next: ", text)
        self.assertRegex(self.ctl("get", "bad"),
                         r"(?m)^reason: .*\n {8}rows-bad\.jsonl:25: ")

    def test_loss_that_is_not_finite_holds_the_job(self):
        """Held with the step and what to do; cancel keeps the evidence."""
        self.overflowing_model("overflows")
        self.local.write("nan.yaml", job("nan", 9).replace(
            f"{cluster.ROOT}/examples/base/model", "overflows"))
        text = self.ctl("submit", "-f", "nan.yaml", "--follow", code=101)
        found = json.loads(self.ctl("get", "nan", "-o", "json"))
        self.assertEqual(found["state"], "JOB_STATE_HELD", text)
        self.assertEqual(found["failureClass"], "FAILURE_CLASS_NUMERICAL")
        self.assertIn("step 1 has loss", found["reason"])
        self.assertIn("train.learning_rate", found["reason"])
        self.assertRegex(found["hint"], r"^qloractl submit -f job\.yaml --set "
                         r"train\.learning_rate=0\.0001  # ")
        # Without a checkpoint a replay would be the same computation.
        self.assertEqual(found["restarts"], 0)
        shown = self.ctl("get", "nan")
        self.assertIn("reason: step 1 has loss nan", shown)
        self.assertIn("hint: ", shown)
        self.assertRegex(self.ctl("resume", "nan"), r"j-\w{12} QUEUED")
        self.ctl("wait", "nan", "--timeout", "60s", code=101)
        self.ctl("cancel", "nan")
        found = json.loads(self.ctl("get", "nan", "-o", "json"))
        self.assertEqual(found["state"], "JOB_STATE_CANCELLED")
        self.assertIn("it was HELD: step 1 has loss", found["reason"])
        self.assertIn("step 1 has loss", found["lastFailure"]["message"])
        self.assertEqual(found["lastFailure"]["attempt"], 2)
        self.refused("resume", "nan", code=7, error="is CANCELLED", hint="")

    def overflowing_model(self, name):
        """Registers the example's base with a last norm that overflows."""
        copy = self.local.directory / "overflowing"
        shutil.copytree(cluster.ROOT / "examples/base/model", copy)
        weights = copy / "model.safetensors"
        content = bytearray(weights.read_bytes())
        size = 8 + int.from_bytes(content[:8], "little")
        tensor = json.loads(content[8:size])["model.norm.weight"]
        self.assertEqual(tensor["dtype"], "F32")
        begin, end = (size + offset for offset in tensor["data_offsets"])
        content[begin:end] = struct.pack("<f", 3e38) * ((end - begin) // 4)
        weights.write_bytes(content)
        self.ctl("model", "import", str(copy), "--name", name, "--upload")

    def test_absolute_data_paths(self):
        own = str(self.local.directory / "rows.jsonl")
        text = str(cluster.ROOT / "examples/base/text.txt")
        for name, path in (("own", own), ("theirs", text)):
            self.local.write(f"{name}.yaml", job(name, 2).replace(
                "path: rows.jsonl", f"path: {path}"))
            self.ctl("submit", "-f", f"{name}.yaml", "--follow")
        self.local.write("gone.yaml", job("gone", 2).replace(
            "path: rows.jsonl", "path: /no/rows.jsonl"))
        self.refused("submit", "-f", "gone.yaml", code=6,
                     error="/no/rows.jsonl was not uploaded",
                     hint="--model-root")

    def test_records_that_were_left_out_are_counted_everywhere(self):
        self.local.write("rows-odd.jsonl", ROWS + '{"text": 3\n' + json.dumps(
            {"text": "A long record about the sea. " * 20}) + "\n")
        self.local.write("odd.yaml", job("odd", 2).replace(
            "path: rows.jsonl", "path: rows-odd.jsonl"))
        odd = ("--set", "data.on_bad_record=skip",
               "--set", "data.on_too_long=split")
        counts = "26 read, 1 bad (skipped), 1 split"
        text = self.ctl("submit", "-f", "odd.yaml", "--follow", *odd)
        self.assertRegex(text, rf"(?m)^records: {re.escape(counts)}; rows: \d+ "
                               r"to train, 0 to evaluate\n(.*\n)*?step 1/2 ")
        for view in (("describe", "odd"), ("plan", "-f", "odd.yaml", *odd)):
            self.assertRegex(self.ctl(*view), rf"Records: +{re.escape(counts)}")
        self.assertIn("rows-odd.jsonl:25: not valid JSON",
                      self.ctl("logs", "odd"))
        self.ctl("adapter", "pull", "odd", "--to", "odd-out")
        card = (self.local.directory / "odd-out/README.md").read_text()
        self.assertIn("| records | 26 read, 1 bad (skipped), 0 truncated, "
                      "1 split, 0 dropped |", card)

    def test_interrupt_detaches_and_says_so(self):
        self.local.write("attached.yaml", job("attached", LONG))
        code, text = self.follow_on_a_terminal("attached.yaml")
        self.assertEqual(code, 101, text)
        self.assertIn("detached (Ctrl-C); the job goes on", text)
        self.assertRegex(text, r"next: qloractl wait j-\w{12}")
        self.assertRegex(text, r"\[.*\] \d+/\d+  loss .*tok/s  ETA ")
        self.await_state("attached", "RUNNING")
        self.ctl("cancel", "attached")
        self.ctl("wait", "attached", "--timeout", "60s", code=103)

    def follow_on_a_terminal(self, file):
        """Follows until the bar is there, then Ctrl-C: exit code and output."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.local.directory)
            environment = dict(os.environ, TERM="xterm", COLUMNS="120",
                               HOME=str(self.local.directory),
                               XDG_CONFIG_HOME=str(
                                   self.local.directory / "config"))
            os.execve(cluster.program("qloractl"),
                      ["qloractl", "submit", "-f", file, "--follow"],
                      environment)
        text = ""
        deadline = time.monotonic() + 60
        sent = False
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                break
            if not sent and "tok/s" in text:
                os.write(terminal, b"\x03")
                sent = True
        else:
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

    # -- wrong input ---------------------------------------------------------

    def test_job_files_that_are_wrong(self):
        wrong = {
            "train: {epochs: 1": (6, "wrong.yaml:"),
            "train:\n\tepochs: 1\n": (6, "wrong.yaml:2:1: the line is "
                                       "indented with a tab"),
            job("w", 1).replace("rank: 4", "rnk: 4"): (
                6, "wrong.yaml:5:8: lora.rnk: unknown key; did you mean "
                   "'lora.rank'"),
            job("w", 1).replace("rank: 4", "rank: four"): (6, "lora.rank"),
            job("w", 1).replace("apiVersion: qlora/v1\n", ""): (
                6, "apiVersion: is required: begin the file with "
                   "'apiVersion: qlora/v1'"),
            job("w", 1).replace("rows.jsonl", "none.jsonl"): (
                3, "cannot find none.jsonl"),
            job("w", 1).replace("rows.jsonl, format: text", "empty.jsonl, "
                                "format: text"): (
                6, "data file empty.jsonl is empty: add records"),
            job("w", 1).replace("rows.jsonl, format: text",
                                "rows.jsonl, format: chat").replace(
                f"{cluster.ROOT}/examples/base/model", "no-template"): (
                6, "data.chat_template: is needed: data.train[0] (rows.jsonl) "
                   "has format chat, but no-template has no chat template"),
            job("w", 1).replace("rows.jsonl", "dataset:gone"): (
                6, "hint: qloractl dataset list"),
            job("w", 1).replace(f"{cluster.ROOT}/examples/base/model",
                                "./base-model"): (
                3, f"no such directory: {self.local.directory}/base-model"),
            job("w", 1).replace(f"{cluster.ROOT}/examples/base/model",
                                "base-model"): (
                6, "hint: qloractl model list"),
            job("w", 1).replace("examples/base/model", "examples/nothing"): (
                6, "examples/nothing: no such directory"),
            job("w", 1).replace(f"{cluster.ROOT}/examples/base/model",
                                "/usr"): (6, "/usr"),
            job("w", 1).replace("rank: 4", "rank: 4, target_modules: [q_prj]"):
                (6, "lora.target_modules: 'q_prj' matches no module"),
            job("w", 1).replace("{device: cpu}", "{devices_per_node: 64}"): (
                6, "local has 2 cpu devices"),
            job("w", 1).replace("{device: cpu}", "{nodes: 2}"): (
                6, "needs 2 nodes with 1 device of any kind: only local"),
            job("w", 1).replace("path: rows.jsonl", "path: 'dataset:gone'"): (
                6, "qloractl dataset push FILE --name gone"),
        }
        self.local.write("empty.jsonl", "")
        self.model_without_a_template("no-template")
        for text, (code, error) in wrong.items():
            # A plan for more devices than there are is no mistake.
            too_big = re.search(r"nodes: 2|_node: 64", text)
            for verb in ("submit",) if too_big else ("submit", "plan"):
                with self.subTest(error, verb=verb):
                    self.local.write("wrong.yaml", text)
                    found = self.ctl(verb, "-f", "wrong.yaml", code=code)
                    self.assertRegex(found, r"(?m)^error: ")
                    self.assertIn(error, found)
        self.assertNotIn("j-", self.ctl("list", "--label", "a=b"))

    def model_without_a_template(self, name):
        # Not beside the job file, where the directory would go before the name.
        copy = self.local.directory / "models" / name
        shutil.copytree(cluster.ROOT / "examples/base/model", copy)
        path = copy / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["chat_template"]
        path.write_text(json.dumps(config), encoding="utf-8")
        self.ctl("model", "import", str(copy), "--upload")

    def test_errors_of_overrides_name_the_flag(self):
        self.local.write("set.yaml", "# A comment.\n\n" + job("set", 1))
        self.refused("submit", "-f", "set.yaml", "--set", "lora.rank=four",
                     code=6, error="cause: --set lora.rank=four: lora.rank: ",
                     hint="qloractl explain lora.rank")
        self.refused("submit", "-f", "set.yaml", "--name", "no name", code=6,
                     error="cause: --name no name: name: ")
        self.refused("plan", "-f", "set.yaml", "--set", "train", code=6,
                     error="--set train: give KEY=VALUE")
        self.local.write("set.yaml", "# A comment.\n\n" + job("set", 1).replace(
            "rank: 4", "rnk: 4"))
        self.refused("submit", "-f", "set.yaml", "--set", "priority=60", code=6,
                     error="cause: set.yaml:7:8: lora.rnk: unknown key")

    def test_command_lines_that_are_wrong(self):
        self.refused("sumbit", code=2, error="did you mean submit?",
                     hint="qloractl --help")
        self.assertRegex(self.ctl("--version"), r"^qloractl [0-9.]+\n$")
        self.refused("submit", "-f", ".", code=2, error="it is a directory",
                     hint="qloractl init")
        self.refused("list", "--endpoint", "https://h:1", code=2,
                     error="there is no TLS yet")
        self.refused("list", "--state", "bogus", code=2, error="running, ")
        self.refused("generate", "--job", "j", "--temperature", "-1", "x",
                     code=2, error="--temperature: must be 0 to 100, not -1")
        self.refused("wait", "j", "--timeout", "soon", code=2,
                     error="such as 90s, 5m or 1h30m",
                     hint="qloractl wait --help")
        self.refused("submit", code=2, error="--file",
                     hint="qloractl submit --help")
        self.refused("list", "-o", "xml", code=2, error="xml", hint="")
        self.refused("metrics", "j", "-o", "xml", code=2, error="jsonl, csv",
                     hint="")
        self.refused("get", "@last", "--project", "empty", code=3,
                     error="there are no jobs in project empty",
                     hint="qloractl submit -f job.yaml")
        self.refused("get", "j-nothing", code=3, error="j-nothing",
                     hint="qloractl list")
        self.refused("submit", "-f", "none.yaml", code=3, error="none.yaml",
                     hint="qloractl init")
        self.refused("explain", "train.lerning_rate", code=3,
                     error="train.learning_rate")
        self.refused("context", "use", "nowhere", code=3, error="nowhere",
                     hint="qloractl context list")

    def test_coordinator_that_is_not_there(self):
        self.refused("--endpoint", "127.0.0.1:1", "list", code=5,
                     error="cannot reach the coordinator at 127.0.0.1:1",
                     hint="qloractl local start")
        self.assertIn("READY", self.ctl(
            "--endpoint", f"http://{self.local.local['endpoint']}/", "node",
            "list"))

    def test_init_writes_a_job_file_that_is_valid(self):
        self.ctl("init", "--name", "mine", "first.yaml")
        self.refused("init", "first.yaml", code=7, error="first.yaml",
                     hint="--force")
        self.refused("init", ".", code=2, error="cannot write .")
        self.refused("init", "--name", "no name", "bad.job", code=2,
                     error="name: must begin with a letter or digit")
        # With both flags there is nothing left to fill in.
        self.local.write("rows.txt", "The sea and the bread. " * 20)
        flags = ("--model", f"{cluster.ROOT}/examples/base/model", "--data",
                 "rows.txt")
        text = self.ctl("init", "second.yaml", *flags)
        self.assertNotIn("fill in", text)
        self.refused("init", "second.yaml", *flags, code=7, error="second.yaml",
                     hint=f"qloractl init --force {' '.join(flags)} second.yaml")
        self.refused("init", "third.yaml", "--model", "./nothing", code=3,
                     error="--model ./nothing: no such directory", hint="")
        self.refused("init", "third.yaml", "--data", "nothing.txt", code=3,
                     error="--data nothing.txt: no such file", hint="")
        self.ctl("submit", "-f", "second.yaml", "--dry-run")
        self.ctl("submit", "-f", "first.yaml", "--dry-run", "--set",
                 "data.train.0.path=rows.jsonl", "--set",
                 "data.train.0.format=text", "--set",
                 f"model.base={cluster.ROOT}/examples/base/model")


if __name__ == "__main__":
    unittest.main(verbosity=2)
