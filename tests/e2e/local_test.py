"""`qloractl local`: starts once, stops all of it, survives what went wrong."""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import cluster


# More steps than any test waits for.
JOB = f"""\
apiVersion: qlora/v1
name: endless
model: {{base: {cluster.ROOT}/examples/base/model}}
method: lora
lora: {{rank: 4}}
data: {{train: [{{path: rows.jsonl, format: tokens}}], max_seq_len: 64}}
train: {{max_steps: 1000000, global_batch_size: 2, learning_rate: 1e-3}}
checkpoint: {{every: 20 steps}}
resources: {{device: cpu}}
"""


def processes_of(directory):
    """Command lines of processes that name a directory."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory) in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


class LocalTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="qlora-local-"))
        self.data = self.directory / "data"
        self.environment = dict(
            os.environ, HOME=str(self.directory),
            XDG_CONFIG_HOME=str(self.directory / "config"),
            XDG_STATE_HOME=str(self.directory / "state"))

        self.addCleanup(self.clean_up)

    def clean_up(self):
        self.ctl("local", "stop", "--data-dir", str(self.data))
        self.assertEqual(processes_of(self.directory), [])
        shutil.rmtree(self.directory)

    def ctl(self, *arguments, code=0):
        result = subprocess.run(
            [cluster.program("qloractl"), *arguments], env=self.environment,
            cwd=self.directory, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
            check=False)
        self.assertEqual(result.returncode, code, result.stdout)
        return result.stdout

    def start(self, *arguments, code=0):
        return self.ctl("local", "start", "--data-dir", str(self.data),
                        *arguments, code=code)

    def state(self):
        return json.loads((self.data / "local.json").read_text())

    def test_start_status_logs_stop(self):
        self.ctl("local", "status", code=5)
        self.assertIn("worker ready", self.start("--cpu-ranks", "2"))
        # The context finds the instance without --data-dir.
        self.assertEqual(self.ctl("local", "status").count("running"), 2)
        status = json.loads(self.ctl("local", "status", "-o", "json"))
        self.assertEqual(status["dataDir"], str(self.data))
        self.assertEqual(status["coordinator"]["endpoint"],
                         self.state()["endpoint"])
        self.assertEqual(status["worker"]["state"], "running")
        self.assertIn("READY", self.ctl("node", "list"))
        self.assertIn("coordinator", self.ctl("local", "logs"))
        self.assertIn("* ", self.ctl("context", "list"))
        state = self.state()
        text = self.ctl("local", "stop")
        for daemon in ("worker", "coordinator"):
            self.assertRegex(
                text, rf"{daemon} +stopped \(pid {state[daemon]['pid']}\)")
        self.assertIn(f"state and logs stay in {self.data}", text)
        self.assertEqual(processes_of(self.directory), [])
        self.assertFalse((self.data / "local.json").exists())
        self.assertIn("nothing runs", self.ctl("local", "stop", "--data-dir",
                                               str(self.data)))

    def test_stop_says_what_becomes_of_jobs(self):
        self.start("--cpu-ranks", "1", "--model-root",
                   str(cluster.ROOT / "examples"))
        (self.directory / "rows.jsonl").write_text(cluster.token_rows(8, 16))
        (self.directory / "job.yaml").write_text(JOB)
        self.ctl("submit", "-f", "job.yaml")
        self.await_state("RUNNING")
        name = self.ctl("list", "-o", "name").strip()
        start = ("qloractl local start --data-dir "
                 f"{self.data} --cpu-ranks 1 --model-root "
                 f"{cluster.ROOT}/examples")
        self.assertIn(f"job {name} goes on from its last checkpoint after: "
                      f"{start}\n", self.ctl("local", "stop"))
        self.ctl(*start.split()[1:])
        self.await_state("RUNNING")
        # With its worker stopped the cancellation cannot be over.
        os.kill(self.state()["worker"]["pid"], signal.SIGSTOP)
        self.assertRegex(self.ctl("cancel", name),
                         rf"^{name} CANCELLING: cancelled by the user")
        text = self.ctl("local", "stop", "--timeout", "1s")
        self.assertIn("killed", text)
        self.assertIn(f"job {name} is being cancelled and does not go on\n",
                      text)
        self.assertNotIn("goes on from", text)
        self.ctl(*start.split()[1:])
        self.ctl("wait", name, "--timeout", "90s", code=103)

    def await_state(self, state):
        for _ in range(600):
            job = json.loads(self.ctl("get", "@last", "-o", "json"))
            if job["state"] == f"JOB_STATE_{state}":
                return
            time.sleep(0.1)
        raise AssertionError(f"the job is {job['state']}, not {state}")

    def test_second_start_says_that_it_runs(self):
        self.start("--cpu-ranks", "1")
        first = self.state()
        self.assertIn("already running", self.start())
        text = self.start("--cpu-ranks", "2", "--foreground", code=7)
        self.assertIn(f"the coordinator (pid {first['coordinator']['pid']}) and "
                      f"the worker (pid {first['worker']['pid']}) run already "
                      f"in {self.data}", text)
        self.assertIn("it was started with --cpu-ranks 1 and without "
                      "--foreground", text)
        self.assertIn(f"hint: qloractl local stop --data-dir {self.data}", text)
        self.assertEqual(self.state(), first)

    def test_two_instances_live_side_by_side(self):
        self.start("--cpu-ranks", "1")
        other = self.directory / "other"
        endpoint = self.start_other(other)
        self.assertNotEqual(endpoint, self.state()["endpoint"])
        # Each has a context; without a flag the current one is meant.
        contexts = {c["name"]: c for c in json.loads(
            self.ctl("context", "list", "-o", "json"))["contexts"]}
        self.assertEqual(contexts["local"]["endpoint"],
                         self.state()["endpoint"])
        self.assertEqual(contexts["local-other"]["dataDir"], str(other))
        self.assertTrue(contexts["local-other"]["current"])
        self.assertIn(str(self.data),
                      self.ctl("--context", "local", "local", "status"))
        self.ctl("context", "set", "lab", "127.0.0.1:1")
        self.ctl("context", "use", "lab")
        self.assertIn(f"there are {self.data}, {other}",
                      self.ctl("local", "stop", code=7))
        self.ctl("context", "use", "local-other")
        self.assertIn("stopped", self.ctl("local", "stop"))
        self.assertEqual(processes_of(other), [])
        self.assertRegex(self.ctl("context", "list"), r"\* +local ")
        self.assertIn("READY", self.ctl("node", "list"))

    def start_other(self, data):
        """Starts another instance, which ends with the test; its endpoint."""
        self.addCleanup(self.ctl, "local", "stop", "--data-dir", str(data))
        self.ctl("local", "start", "--cpu-ranks", "1", "--data-dir", str(data))
        return json.loads((data / "local.json").read_text())["endpoint"]

    def test_start_never_ends_what_runs(self):
        """Other flags, or another instance, while the coordinator is down."""
        self.start("--cpu-ranks", "1")
        before = self.state()
        os.kill(before["coordinator"]["pid"], signal.SIGKILL)
        self.await_end(before["coordinator"]["pid"])
        for flags in (("--cpu-ranks", "2"), ("--model-root", "/usr"),
                      ("--foreground",)):
            with self.subTest(flags):
                text = self.start(*flags, code=7)
                self.assertRegex(
                    text, rf"cause: the worker \(pid {before['worker']['pid']}"
                          r"\) runs already in .*; the coordinator has ended")
                self.assertIn("without this flag starts again", text)
                self.assertIn("hint: qloractl local stop", text)
        # The worker looks for its coordinator there.
        self.assertNotEqual(self.start_other(self.directory / "other"),
                            before["endpoint"])
        self.assertIn("worker ready", self.start("--cpu-ranks", "1"))
        after = self.state()
        self.assertEqual(after["worker"], before["worker"])
        self.assertEqual(after["endpoint"], before["endpoint"])

    def test_usual_ports_taken_uses_others(self):
        taken = []
        for port in (7070, 9464, 9465):
            listener = socket.socket()
            self.addCleanup(listener.close)
            # Connections of the test before may still be in TIME_WAIT.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
                listener.listen()
            except OSError:
                continue  # Taken by another already: as good.
            taken.append(port)
        self.start("--cpu-ranks", "1")
        state = self.state()
        for key in ("endpoint", "metrics", "worker_metrics"):
            self.assertNotIn(int(state[key].split(":")[1]), (7070, 9464, 9465))

    def test_state_file_of_dead_processes_is_no_obstacle(self):
        self.start("--cpu-ranks", "1")
        state = self.state()
        self.ctl("local", "stop")
        # Pids that are others' now: this process and its parent.
        state["coordinator"]["pid"] = os.getpid()
        state["worker"]["pid"] = os.getppid()
        (self.data / "local.json").write_text(json.dumps(state))
        self.ctl("local", "status", "--data-dir", str(self.data), code=5)
        self.assertIn("worker ready", self.start("--cpu-ranks", "1"))
        state_now = self.state()
        self.assertNotEqual(state_now["coordinator"]["pid"], os.getpid())

    def test_killed_daemon_is_reported_and_it_alone_is_revived(self):
        self.start("--cpu-ranks", "1")
        for dead, other in (("worker", "coordinator"),
                            ("coordinator", "worker")):
            with self.subTest(dead):
                before = self.state()
                os.kill(before[dead]["pid"], signal.SIGKILL)
                self.await_end(before[dead]["pid"])
                self.assertRegex(self.ctl("local", "status", code=5),
                                 f"{dead} +ended")
                # Without flags: what runs says how it was started.
                self.assertIn("worker ready", self.start())
                after = self.state()
                self.assertNotEqual(after[dead], before[dead])
                self.assertEqual(after[other], before[other])
                # The one that lived on looks for it there.
                self.assertEqual(after["endpoint"], before["endpoint"])
                self.assertEqual(after["cpu_ranks"], 1)
                self.assertIn("READY", self.ctl("node", "list"))

    def test_both_killed_come_back_as_they_were(self):
        self.start("--cpu-ranks", "1", "--model-root", "/tmp")
        for _ in range(2):
            before = self.state()
            for daemon in ("worker", "coordinator"):
                os.kill(before[daemon]["pid"], signal.SIGKILL)
                self.await_end(before[daemon]["pid"])
            self.assertIn("models below /tmp\n", self.start())
            self.assertEqual(self.state()["cpu_ranks"], 1)
        for daemon in ("worker", "coordinator"):
            os.kill(self.state()[daemon]["pid"], signal.SIGKILL)
            self.await_end(self.state()[daemon]["pid"])
        # Flags go before.
        self.start("--cpu-ranks", "2")
        self.assertEqual(self.state()["cpu_ranks"], 2)

    @staticmethod
    def await_end(pid):
        for _ in range(200):
            try:
                stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return
            if ") Z " in stat:
                return
            time.sleep(0.05)
        raise AssertionError(f"{pid} still runs")

    def test_stop_makes_the_context_before_current_again(self):
        self.ctl("context", "set", "lab", "http://lab.example:7070/")
        self.start("--cpu-ranks", "1")
        self.assertRegex(self.ctl("context", "list"), r"\* +local")
        self.assertIn("now talking to lab at lab.example:7070",
                      self.ctl("local", "stop"))
        contexts = self.ctl("context", "list")
        self.assertRegex(contexts, r"\* +lab")
        self.assertNotIn("local", contexts)

    def test_second_coordinator_on_the_same_data_is_refused(self):
        self.start("--cpu-ranks", "1")
        second = subprocess.run(
            [cluster.program("qlora-coordinator"), "--data-dir",
             str(self.data / "coordinator"), "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0"], text=True, timeout=30,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertNotEqual(second.returncode, 0)
        self.assertIn(str(self.state()["coordinator"]["pid"]), second.stdout)
        self.assertIn("READY", self.ctl("node", "list"))

    def test_start_that_fails_leaves_nothing_and_shows_the_log(self):
        (self.data / "coordinator").mkdir(parents=True)
        with open(self.data / "coordinator/LOCK", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = self.start("--cpu-ranks", "1", code=5)
        self.assertIn("error: qlora-coordinator ended while it started", text)
        self.assertRegex(text, r"(?m)^cause: .*LOCK|^cause: .*lock|in use")
        self.assertEqual(processes_of(self.directory), [])

    def test_unknown_model_root_is_refused(self):
        self.assertIn("no such directory",
                      self.start("--model-root", "/no/such/place", code=3))

    def test_foreground_ends_both_on_each_signal(self):
        """Ctrl-C, a service manager's, and the one of a terminal that goes."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number):
                self.foreground_ends_both_on(number)

    def foreground_ends_both_on(self, number):
        process = subprocess.Popen(
            [cluster.program("qloractl"), "local", "start", "--foreground",
             "--cpu-ranks", "1", "--data-dir", str(self.data)],
            env=self.environment, cwd=self.directory, text=True,
            # Whatever runs the tests may ignore it.
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while "next: Ctrl-C" not in process.stdout.readline():
            self.assertIsNone(process.poll())
        self.assertEqual(self.ctl("local", "status", "--data-dir",
                                  str(self.data)).count("running"), 2)
        process.send_signal(number)
        if number != signal.SIGINT:
            # A terminal that goes says so twice.
            process.send_signal(number)
        self.assertEqual(process.wait(timeout=60), 0)
        process.stdout.close()
        self.assertEqual(processes_of(self.directory), [])
        self.assertNotIn("local", self.ctl("context", "list"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
