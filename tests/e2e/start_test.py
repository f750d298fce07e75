"""Daemons that cannot start, or go on, say so once: what, where, the remedy."""

import os
import signal
import subprocess

import cluster
import nodes


def fails(name, *arguments, code=1):
    """What the daemon prints, which must end by itself."""
    result = subprocess.run(
        [cluster.program(name), *map(str, arguments)], text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=30, check=False)
    assert result.returncode == code, (name, arguments, result)
    return result.stdout


def one_error(text, *parts):
    assert text.startswith("error: ") and text.count("\n") == 1, text
    for part in parts:
        assert str(part) in text, (part, text)


def taken(local, own):
    """A data directory or a port that another process has."""
    for name, daemon in (("qlora-coordinator", local.coordinator),
                         ("qlora-worker", local.workers["one"])):
        ports = ["--metrics-listen", "127.0.0.1:0"]
        if name == "qlora-coordinator":
            ports += ["--listen", "127.0.0.1:0"]
            one_error(fails(name, "--data-dir", own / name, *ports[:2],
                            "--listen", daemon.endpoints["grpc"]),
                      daemon.endpoints["grpc"], "--listen")
        one_error(fails(name, "--data-dir", daemon.data, *ports),
                  f"{daemon.data} is in use", f"pid {daemon.process.pid}")
        one_error(fails(name, "--data-dir", own / name, *ports[2:],
                        "--metrics-listen", daemon.endpoints["metrics"]),
                  daemon.endpoints["metrics"], "--metrics-listen")
        (own / "file").touch()
        one_error(fails(name, "--data-dir", own / "file", *ports),
                  f"--data-dir {own / 'file'}: Not a directory")


def configuration(own):
    """--check-config names the file, unless it is not to blame."""
    def check(name, yaml, *parts, flags=()):
        file = own / "config.yaml"
        file.write_text(yaml, encoding="utf-8")
        text = fails(name, "--config", file, "--check-config", *flags, code=2)
        error = text.splitlines()[0]
        assert error.startswith(f"error: {file}: "), text
        for part in parts:
            assert part in error, (part, text)
    check("qlora-worker", "node-nam: a\n", "line 1", 'mean "node-name"')
    check("qlora-worker", "node-name: a b\n", '--node-name "a b"')
    check("qlora-worker", "step-timeout: soon\n", "--step-timeout")
    check("qlora-worker", "cache-limit: much\n", "--cache-limit")
    check("qlora-worker", "cache-limit: -1\n", "--cache-limit")
    check("qlora-coordinator", "node-name: a\n", 'unknown key "node-name"')
    check("qlora-coordinator", "job-log-limit: much\n", "--job-log-limit")
    check("qlora-coordinator", "lease: 1ms\n", "--lease",
          flags=["--data-dir", own])
    text = fails("qlora-worker", "--config", own / "absent", "--check-config",
                 code=2)
    assert text.startswith(f"error: --config {own / 'absent'}: "), text
    text = fails("qlora-worker", "--node-name", "a b", code=2)
    assert text.startswith('error: --node-name "a b"'), text


def name_taken(local, own):
    """The second worker of a name gives up; the first goes on."""
    first = local.workers["one"]
    text = fails("qlora-worker", "--data-dir", own / "second", "--node-name",
                 "one", "--metrics-listen", "127.0.0.1:0", "--coordinator",
                 local.coordinator.endpoints["grpc"])
    error = text.splitlines()[-1]
    one_error(error + "\n", '"one" is taken', f"pid {first.process.pid}",
              first.data, "--node-name")
    assert first.process.poll() is None
    assert local.ctl("node", "list").stdout.count("READY") == 1
    # Its own former run's stream is no other worker's.
    for _ in range(5):
        first.kill()
        first.start()
        nodes.eventually(
            lambda: "registered" in
            first.log_path().read_text().rpartition("worker started")[2], 10,
            "a worker that was killed is back")


def launcher_stuck(local):
    """A worker does not wait for ever for a launcher that cannot end."""
    worker = local.workers["one"]
    [launcher] = [pid for pid in local.processes("--node-name\0one")
                  if pid != worker.process.pid]
    os.kill(launcher, signal.SIGSTOP)
    assert worker.stop() == 0
    os.kill(launcher, signal.SIGKILL)
    worker.start()


def main():
    with nodes.Nodes({"one": 1}, []) as local:
        own = local.directory / "own"
        own.mkdir()
        taken(local, own)
        configuration(own)
        name_taken(local, own)
        launcher_stuck(local)
    print("each error was said once")


if __name__ == "__main__":
    main()
