"""Each process of a running job is killed by -9 in turn; the job finishes.

What a job hands back must not show that anything happened: every step once in
metrics.jsonl, and the adapter bit for bit that of a run without trouble.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time

import cluster
import nodes

STEPS = 90
ROWS = cluster.token_rows(48, 128)
JOB = """\
apiVersion: qlora/v1
model: {{base: {model}}}
method: qlora
lora: {{rank: 4}}
data: {{train: [{{path: rows.jsonl, format: tokens}}], max_seq_len: 128, packing: false}}
train: {{max_steps: {steps}, global_batch_size: 12, learning_rate: 1e-3, compute_dtype: float32}}
checkpoint: {{every: 15 steps}}
resources: {{nodes: {nodes}, devices_per_node: {ranks}}}
"""


def check_output(output, reference):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    assert [p["step"] for p in points] == list(range(1, STEPS + 1)), \
        [p["step"] for p in points]
    if reference is None:
        return
    for name in ("adapter_model.safetensors", "eval.json"):
        assert (output / name).read_bytes() == (reference / name).read_bytes(), \
            f"{name} differs from the undisturbed run's"


def attempts(job):
    return int(job.get("attempt", 0))


def undisturbed(local, job_file):
    local.submit("reference", job_file)
    assert attempts(local.wait_for_success("reference")) == 1
    output = local.output("reference")
    check_output(output, None)
    return output


def rank_killed(local, job_file, reference):
    local.submit("rank-killed", job_file)
    local.wait_for_step("rank-killed", 20)
    ranks = local.ranks()
    assert len(ranks) == 2, ranks
    tokens = token_files(local)
    assert len(tokens) == 2, tokens
    os.kill(ranks[-1], signal.SIGKILL)
    nodes.eventually(lambda: not set(local.ranks()) & set(ranks), 5,
                     "the other rank is gone")
    assert attempts(local.wait_for_success("rank-killed")) == 2
    assert token_files(local) == tokens, "the data was tokenized again"
    check_output(local.output("rank-killed"), reference)


def token_files(local):
    """Those that the worker keeps: one that is made anew is another."""
    files = local.workers["one"].data.glob("cache/tokens/*.tokens")
    return sorted((file.name, file.stat().st_ino) for file in files)


def worker_killed(local, job_file, reference):
    local.submit("worker-killed", job_file)
    local.wait_for_step("worker-killed", 20)
    worker = local.workers["one"]
    worker.kill()
    nodes.eventually(lambda: not local.processes("--node-name\0one")
                     and not local.ranks(), 5,
                     "no process of the worker is left")
    worker.start()
    assert attempts(local.wait_for_success("worker-killed")) == 2
    check_output(local.output("worker-killed"), reference)


def coordinator_killed(local, job_file, reference):
    local.submit("coordinator-killed", job_file)
    local.submit("waits", job_file)
    local.wait_for_step("coordinator-killed", 10)
    ranks = local.ranks()
    local.coordinator.kill()
    # The ranks neither stop nor are they started anew.
    before = spooled(local)
    nodes.eventually(lambda: spooled(local) > before, 30,
                     "steps go on without a coordinator")
    assert local.ranks() == ranks
    local.coordinator.start()
    job = local.wait_for_success("coordinator-killed")
    assert attempts(job) == 1, job
    check_output(local.output("coordinator-killed"), reference)
    points = local.ctl("metrics", "coordinator-killed", "-o", "jsonl").stdout
    steps = [int(json.loads(line)["step"]) for line in points.splitlines()]
    assert steps == list(range(1, STEPS + 1)), steps
    # Acknowledged before the kill, hence still there.
    local.wait_for_success("waits")
    check_output(local.output("waits"), reference)


def worker_hurried(local, job_file, reference):
    """A second SIGTERM ends a worker at once, even without a coordinator."""
    local.submit("hurried", job_file)
    local.wait_for_step("hurried", 20)
    worker = local.workers["one"]

    def logged(what):
        text = worker.log_path().read_text().rpartition("worker started")[2]
        return what in text

    local.coordinator.kill()
    nodes.eventually(lambda: logged("no stream to the coordinator"), 5,
                     "the worker notices")
    before = spooled(local)
    nodes.eventually(lambda: spooled(local) > before + 2000, 30,
                     "it waits for a connection while steps go on")
    worker.process.terminate()
    nodes.eventually(lambda: logged("shutting down"), 5, "the first is heard")
    worker.process.terminate()
    assert worker.process.wait(timeout=5) == 0
    nodes.eventually(lambda: not local.ranks(), 5, "no rank is left")
    local.coordinator.start()
    worker.start()
    local.wait_for_success("hurried")
    check_output(local.output("hurried"), reference)


def spooled(local):
    """Bytes of events that wait in the worker's spool."""
    spool = local.workers["one"].data / "spool"
    return sum(path.stat().st_size for path in spool.glob("*.log"))


def worker_drained(local, job_file, reference):
    """SIGTERM loses no step: the ranks save before they leave."""
    local.submit("drained", job_file)
    local.wait_for_step("drained", 20)
    worker = local.workers["one"]
    assert worker.stop() == 0
    saved = int(local.job("drained")["headStep"])
    assert saved >= 20, saved
    worker.start()
    local.wait_for_success("drained")
    check_output(local.output("drained"), reference)


def worker_drained_alone(local, job_file, reference):
    """SIGTERM without a coordinator: what the ranks save is handed in later."""
    name = "drained-alone"
    local.submit(name, job_file)
    nodes.eventually(lambda: int(local.job(name).get("headStep", 0)) >= 15, 120,
                     "a checkpoint is committed")
    worker = local.workers["one"]
    local.coordinator.kill()
    before = spooled(local)
    nodes.eventually(lambda: spooled(local) > before + 1000, 30,
                     "steps go on without a coordinator")
    begun = time.monotonic()
    assert worker.stop() == 0
    took = time.monotonic() - begun
    assert took < 15, f"the worker took {took:.0f} s to end"
    log = worker.log_path().read_text()
    kept = re.findall(r"checkpoint is kept .*step=(\d+)", log)
    assert len(kept) == 1, log[-3000:]
    local.coordinator.start()
    worker.start()
    job = local.wait_for_success(name)
    assert attempts(job) == 2 and "lastFailure" not in job, job
    told = local.ctl("events", name).stdout
    assert f"from step {kept[0]}" in told, told
    check_output(local.output(name), reference)


def checkpoint_damaged(local, job_file, reference):
    """A head checkpoint that rotted is set aside for the one before it."""
    name = "damaged"
    local.submit(name, job_file)
    nodes.eventually(lambda: int(local.job(name).get("headStep", 0)) >= 15, 120,
                     "a checkpoint is committed")
    worker = local.workers["one"]
    assert worker.stop() == 0
    listed = json.loads(local.ctl("checkpoint", "list", name, "-o",
                                  "json").stdout)["checkpoints"]
    assert len(listed) >= 2 and listed[-1]["head"], listed
    [params] = [f["sha256"] for f in listed[-1]["files"]
                if f["path"] == "params.safetensors"]
    stored = local.coordinator.data / "artifacts/objects" / params[:2] / \
        params[2:]
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    shutil.rmtree(worker.data / "cache")
    worker.start()
    assert attempts(local.wait_for_success(name)) == 3
    assert "CheckpointCorrupt" in local.ctl("events", name).stdout
    check_output(local.output(name), reference)


def disk_filled(local, job_file, reference):
    """The worker's disk fills up while it trains. The job is HELD and keeps its
    checkpoint, and goes on from it when there is room again."""
    worker = local.workers["one"]
    worker.stop()
    if not mount_small_disk(worker.data):
        worker.start()
        print("disk_filled: SKIPPED: only root may mount a small disk",
              flush=True)
        return
    worker.start()
    try:
        fill_hold_resume(local, job_file, reference, worker.data / "ballast")
    finally:
        worker.stop()
        subprocess.run(["umount", worker.data], check=True)
    worker.start()


def mount_small_disk(directory):
    return os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", directory],
        check=False, stderr=subprocess.DEVNULL).returncode == 0


def fill_hold_resume(local, job_file, reference, ballast):
    name = "disk-filled"
    local.submit(name, job_file)
    nodes.eventually(lambda: int(local.job(name).get("headStep", 0)) >= 15, 120,
                     "a checkpoint is committed")
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
    result = local.ctl("wait", name, "--timeout", "120s")
    assert result.returncode == 101, result.stdout
    held = local.job(name)
    assert held["state"] == "JOB_STATE_HELD", held
    assert held["failureClass"] == "FAILURE_CLASS_DISK", held
    assert "No space left on device" in held["reason"], held
    assert int(held["headStep"]) >= 15, held
    text = local.ctl("describe", name).stdout
    assert f"qloractl resume {held['jobId']}  # after making space" in text, text
    ballast.unlink()
    result = local.ctl("resume", name)
    assert result.returncode == 0, result.stdout
    job = local.wait_for_success(name)
    assert attempts(job) == 2, job
    assert job["lastFailure"]["failureClass"] == "FAILURE_CLASS_DISK", job
    check_output(local.output(name), reference)
    result = local.ctl("resume", name)
    assert result.returncode == 7 and "only a HELD job" in result.stdout, \
        result.stdout


def main():
    data = cluster.shared_data()
    if data is None:
        cluster.skip("shared/data is absent (set QLORA_SHARED_DATA)")
    models = data / "models"
    job_file = JOB.format(model=models / "stories260K", steps=STEPS, nodes=1,
                          ranks=2)
    with nodes.Nodes({"one": 2}, [models]) as local:
        (local.directory / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        reference = undisturbed(local, job_file)
        for scenario in (rank_killed, worker_killed, coordinator_killed,
                         worker_drained, worker_drained_alone, worker_hurried,
                         checkpoint_damaged, disk_filled):
            scenario(local, job_file, reference)
            print(f"{scenario.__name__}: as if nothing had happened",
                  flush=True)


if __name__ == "__main__":
    main()
