"""What goes wrong on a node: stopped processes, full disks, no memory, NaN.

A job that can go on does so by itself and hands back what an undisturbed one
does; one that cannot is kept with its last checkpoint and says why.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys

import cluster
import faults_test
import nodes

# Short, so that a test sees them pass.
COORDINATOR_FLAGS = ["--heartbeat", "500ms", "--lease", "2s",
                     "--reschedule-after", "4s", "--startup-reschedule-after",
                     "4s", "--artifact-grace", "5s", "--backoff", "500ms"]
WORKER_FLAGS = ["--step-timeout", "4s"]
STEPS = faults_test.STEPS
CLONE_NEWNS = 0x20000


def events(local, name):
    return local.ctl("events", name).stdout


def node_state(local, name):
    """"READY" and so on."""
    for line in local.ctl("node", "list").stdout.splitlines():
        if line.split()[:1] == [name]:
            return line.split()[1]
    return None


def held(local, name, failure_class):
    """The job, once it is HELD for that reason; nothing of it runs then."""
    def question():
        job = local.job(name)
        return job if job["state"] == "JOB_STATE_HELD" else None
    job = nodes.eventually(question, 60, f"{name} is HELD")
    assert job["failureClass"] == f"FAILURE_CLASS_{failure_class}", job
    assert not local.ranks()
    return job


def checkpoints(local, name):
    listed = local.ctl("checkpoint", "list", name, "-o", "json").stdout
    return json.loads(listed).get("checkpoints", [])


def artifact(local, file):
    digest = file["sha256"]
    return local.coordinator.data / "artifacts/objects" / digest[:2] / digest[2:]


def rank_stopped(local, job_file, reference):
    """SIGSTOP of one rank: nothing breaks, nothing moves."""
    local.submit("rank-stopped", job_file)
    local.wait_for_step("rank-stopped", 20)
    os.kill(local.ranks()[-1], signal.SIGSTOP)
    job = local.wait_for_success("rank-stopped")
    assert faults_test.attempts(job) == 2, job
    told = events(local, "rank-stopped")
    assert "is stopped (SIGSTOP)" in told, told
    faults_test.check_output(local.output("rank-stopped"), reference)


def worker_stopped(local, job_file, reference):
    """A worker stopped past its lease comes back when its job runs elsewhere."""
    local.submit("worker-stopped", job_file)
    local.wait_for_step("worker-stopped", 20)
    first = local.job("worker-stopped")["ranks"][0]["node"]
    agent = local.workers[first].process
    zombies = local.ranks()
    agent.send_signal(signal.SIGSTOP)
    nodes.eventually(lambda: node_state(local, first) == "DOWN", 30,
                     "the stopped worker's node is DOWN")
    nodes.eventually(
        lambda: faults_test.attempts(local.job("worker-stopped")) == 2, 30,
        "the job starts on the other node")
    agent.send_signal(signal.SIGCONT)
    nodes.eventually(lambda: not set(local.ranks()) & set(zombies), 10,
                     "the old attempt's ranks are ended")
    nodes.eventually(lambda: node_state(local, first) == "READY", 10,
                     "the node is back")
    job = local.wait_for_success("worker-stopped")
    assert faults_test.attempts(job) == 2, job
    assert job["ranks"][0]["node"] != first, job
    faults_test.check_output(local.output("worker-stopped"), reference)
    # Of what the first attempt still had to say, nothing counted.
    log = local.coordinator.data / "jobs" / job["jobId"] / "metrics.jsonl"
    seen = [json.loads(line)["attempt"]
            for line in log.read_text().splitlines()]
    assert seen == sorted(seen), seen
    assert checkpoints(local, "worker-stopped")[-1]["attempt"] == 2


def deleted(local, job_file, _):
    local.submit("deleted", job_file.replace(f"max_steps: {STEPS}",
                                             "max_steps: 100000"))
    local.wait_for_step("deleted", 20)
    job = local.job("deleted")
    files = [artifact(local, file) for checkpoint in
             nodes.eventually(lambda: checkpoints(local, "deleted"), 10,
                              "a checkpoint")
             for file in checkpoint["files"]]
    result = local.ctl("delete", "deleted")
    assert result.returncode == 0, result.stdout
    nodes.eventually(lambda: not local.ranks(), 10, "its ranks are gone")
    assert local.job("deleted") is None
    of_job = local.coordinator.data / "jobs" / job["jobId"]
    nodes.eventually(lambda: not of_job.exists(), 10, "its files are gone")
    for worker in local.workers.values():
        attempts = worker.data / "attempts"
        nodes.eventually(lambda d=attempts: not d.exists() or
                         not any(d.iterdir()), 10, "its work is gone")
    nodes.eventually(lambda: not any(file.exists() for file in files), 20,
                     "its checkpoints are gone")
    assert local.ctl("node", "list").returncode == 0
    # The devices are free again.
    busy = json.loads(local.ctl("node", "list", "-o", "json").stdout)
    assert not any(device.get("jobId") for node in busy["nodes"]
                   for device in node["devices"]), busy


def diverged(local, job_file, _):
    """Weights that grow a ten-thousandfold a step."""
    local.submit("diverged", job_file.replace(
        "learning_rate: 1e-3", "learning_rate: 100, weight_decay: 100").replace(
            "every: 15 steps", "every: 1 steps"))
    job = held(local, "diverged", "NUMERICAL")
    last = int(job["headStep"])
    assert last >= 1 and f"step {last + 1} has loss" in job["reason"], job
    kept = checkpoints(local, "diverged")[-1]
    assert int(kept["step"]) == last, kept
    assert all(artifact(local, file).exists() for file in kept["files"]), kept
    assert local.ctl("cancel", "diverged").returncode == 0


def idle_worker_leaves(local, _, __):
    """Nobody waits for the lease of a worker that has said goodbye."""
    worker = local.workers["two"]
    assert worker.stop() == 0
    nodes.eventually(lambda: node_state(local, "two") == "DRAINED", 1,
                     "its node is DRAINED")
    worker.start()
    nodes.eventually(lambda: node_state(local, "two") == "READY", 10,
                     "it is back")


def may_mount():
    """From now on, mounts of this process are seen by it and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(CLONE_NEWNS) == 0 and subprocess.run(
        ["mount", "--make-rprivate", "/"], check=False).returncode == 0


def disk_full(models, job_file):
    """The worker's file system has no byte left when a checkpoint is due."""
    if not may_mount():
        print("SKIPPED: disk_full: no right to mount a file system", flush=True)
        return
    local = nodes.Nodes({"small": 2}, [models], worker_flags=WORKER_FLAGS)
    data = local.directory / "small"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", data],
                   check=True)
    with local:
        (local.directory / "rows.jsonl").write_text(faults_test.ROWS,
                                                    encoding="utf-8")
        local.submit("full", job_file)
        local.wait_for_step("full", 20)
        filler = data / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        job = held(local, "full", "DISK")
        assert "No space left" in job["reason"], job
        assert int(job["headStep"]) >= 15, job
        assert local.workers["small"].process.poll() is None
        filler.unlink()
        # With space again, the node works as before.
        local.submit("roomy", job_file)
        local.wait_for_success("roomy")
        local.ctl("cancel", "full")
        local.workers["small"].stop()
        subprocess.run(["umount", data], check=True)
    print("disk_full: well", flush=True)


def main():
    data = cluster.shared_data()
    if data is None:
        cluster.skip("shared/data is absent (set QLORA_SHARED_DATA)")
    models = data / "models"
    job_file = faults_test.JOB.format(model=models / "stories260K",
                                      steps=STEPS, nodes=1, ranks=2)
    with nodes.Nodes({"one": 2, "two": 2}, [models],
                     coordinator_flags=COORDINATOR_FLAGS,
                     worker_flags=WORKER_FLAGS) as local:
        (local.directory / "rows.jsonl").write_text(faults_test.ROWS,
                                                    encoding="utf-8")
        reference = faults_test.undisturbed(local, job_file)
        for scenario in (rank_stopped, worker_stopped, deleted, diverged,
                         idle_worker_leaves):
            scenario(local, job_file, reference)
            print(f"{scenario.__name__}: well", flush=True)
    disk_full(models, job_file)


if __name__ == "__main__":
    sys.exit(main())
