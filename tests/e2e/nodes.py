"""A coordinator and workers, each a process that a test may kill and start again.

For the tests beside it; standard library only.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
import time

import cluster


def eventually(question, seconds, what):
    """Asks until the answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class Daemon:
    """One daemon with its data directory; its ports stay once taken."""

    def __init__(self, directory, program, arguments, ports, cores=None,
                 data_limit=None):
        """cores: those that it may use; all if None. data_limit: bytes of
        memory (RLIMIT_DATA) for it and for each process that it starts."""
        self.data = directory
        self._cores = cores or os.sched_getaffinity(0)
        self._data_limit = data_limit
        self._program = cluster.program(program)
        self._arguments = arguments
        # Flag -> name in endpoints.json.
        self._ports = ports
        self.endpoints = {}
        self.process = None

    def start(self):
        endpoints = self.data / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        listen = [a for flag, name in self._ports.items()
                  for a in (flag, self.endpoints.get(name, "127.0.0.1:0"))]
        self.data.mkdir(parents=True, exist_ok=True)
        with open(self.log_path(), "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [self._program, "--data-dir", str(self.data), *listen,
                 *self._arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, preexec_fn=self._confine)
        eventually(lambda: endpoints.exists() or self.process.poll() is not None,
                   30, f"{self._program} listens")
        assert self.process.poll() is None, self.log_path().read_text()
        self.endpoints = json.loads(endpoints.read_text())

    def _confine(self):
        os.sched_setaffinity(0, self._cores)
        if self._data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA,
                               (self._data_limit, self._data_limit))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """As systemd does; returns the exit code."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.terminate()
        # One that a test has stopped must wake up to hear it.
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(timeout=60)

    def log_path(self):
        return self.data.with_name(self.data.name + ".log")


class Nodes:
    """A context manager; nothing of it is left afterwards."""

    def __init__(self, workers, model_roots, cores=None, coordinator_flags=(),
                 worker_flags=(), data_limit=None):
        """workers: name -> number of CPU ranks; cores: name -> set; data_limit:
        as Daemon's, for the workers."""
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="qlora-nodes-"))
        self.coordinator = Daemon(
            self.directory / "coordinator", "qlora-coordinator",
            coordinator_flags,
            {"--listen": "grpc", "--metrics-listen": "metrics"})
        self.workers = {}
        self._ranks = workers
        self._cores = cores or {}
        self._worker_flags = worker_flags
        self._data_limit = data_limit
        self._roots = [a for root in model_roots
                       for a in ("--model-root", str(root))]

    def __enter__(self):
        try:
            self.coordinator.start()
            for name, ranks in self._ranks.items():
                self.workers[name] = Daemon(
                    self.directory / name, "qlora-worker",
                    ["--coordinator", self.coordinator.endpoints["grpc"],
                     "--node-name", name, "--devices", f"cpu={ranks}",
                     *self._worker_flags, *self._roots],
                    {"--metrics-listen": "metrics"}, self._cores.get(name),
                    self._data_limit)
                self.workers[name].start()
            eventually(lambda: self.ctl("node", "list").stdout.count("READY")
                       == len(self.workers), 30, "every worker is READY")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind, value, traceback):
        daemons = [*self.workers.values(), self.coordinator]
        if kind is not None:
            for daemon in daemons:
                if daemon.log_path().exists():
                    text = daemon.log_path().read_text(errors="replace")
                    print(f"-- {daemon.log_path().name}\n{text[-6000:]}")
        codes = [daemon.stop() for daemon in daemons]
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        if kind is None:
            assert not left, f"processes are left: {left}"
            assert all(code in (0, None) for code in codes), codes

    def processes(self, name=""):
        """Processes that have to do with this directory, by program name."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().decode()
                where = os.readlink(entry / "cwd")
            except OSError:
                continue
            if str(self.directory) in command + where and name in command:
                found.append(int(entry.name))
        return found

    def ranks(self):
        return self.processes("qlora-trainer")

    def ctl(self, *arguments, timeout=300):
        environment = dict(
            os.environ, HOME=str(self.directory), NO_COLOR="1",
            XDG_CONFIG_HOME=str(self.directory / "config"),
            QLORA_ENDPOINT=self.coordinator.endpoints["grpc"])
        return subprocess.run(
            [cluster.program("qloractl"), *arguments], env=environment,
            cwd=self.directory, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
            check=False)

    def submit(self, name, job_file):
        """Returns when the job is acknowledged."""
        path = self.directory / f"{name}.yaml"
        path.write_text(job_file, encoding="utf-8")
        result = self.ctl("submit", "-f", path.name, "--name", name, "--detach")
        assert result.returncode == 0, result.stdout

    def job(self, name):
        """None while the coordinator is away."""
        result = self.ctl("get", name, "-o", "json")
        return json.loads(result.stdout) if result.returncode == 0 else None

    def step(self, name):
        job = self.job(name)
        return int((job or {}).get("progress", {}).get("step", 0))

    def wait_for_step(self, name, step):
        eventually(lambda: self.step(name) >= step, 120, f"{name} at {step}")

    def wait_for_success(self, name):
        result = self.ctl("wait", name, "--timeout", "240s")
        job = self.job(name)
        assert result.returncode == 0 and \
            job["state"] == "JOB_STATE_SUCCEEDED", (result.stdout, job)
        return job

    def output(self, name):
        """The directory that `adapter pull` fills."""
        to = self.directory / f"{name}-output"
        result = self.ctl("adapter", "pull", name, "--to", str(to))
        assert result.returncode == 0, result.stdout
        return to
