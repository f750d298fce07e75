"""Commands that stay with a job lose and repeat nothing while the coordinator
is away, whether it was killed or stopped; and they end where the job rests."""

import json
import os
import signal
import subprocess

import cluster
import nodes

# More than any test waits for: however slow or fast the machine is, the job
# is there when something happens to the coordinator.
STEPS = 1_000_000
ROWS = cluster.token_rows(48, 128)
JOB = """\
apiVersion: qlora/v1
model: {{base: {model}}}
method: lora
lora: {{rank: 4}}
data: {{train: [{{path: rows.jsonl, format: tokens}}], max_seq_len: 128, packing: false}}
train: {{max_steps: {steps}, global_batch_size: 4, learning_rate: {rate}, weight_decay: {decay}, compute_dtype: float32}}
checkpoint: {{every: 50 steps}}
"""
FOLLOWERS = {
    "logs": ("logs", "-f"),
    "events": ("events", "-f"),
    "wait": ("wait",),
    "follow": ("submit", "-f", "followed.yaml", "--name", "followed",
               "--follow"),
}


class Follower:
    """A qloractl that runs beside the test."""

    def __init__(self, local, *arguments):
        self.process = subprocess.Popen(
            [cluster.program("qloractl"), *arguments], text=True,
            env=dict(os.environ, HOME=str(local.directory), NO_COLOR="1",
                     XDG_CONFIG_HOME=str(local.directory / "config"),
                     QLORA_ENDPOINT=local.coordinator.endpoints["grpc"]),
            cwd=local.directory, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, code=0):
        out, err = self.process.communicate(timeout=200)
        assert self.process.returncode == code, (self.process.args, out, err)
        return out, err


def coordinator_goes_and_comes_back(local, job_file):
    (local.directory / "followed.yaml").write_text(job_file, encoding="utf-8")
    followers = {"follow": Follower(local, *FOLLOWERS["follow"])}
    local.wait_for_step("followed", 5)
    for name in ("logs", "events", "wait"):
        followers[name] = Follower(local, *FOLLOWERS[name], "followed")
    local.wait_for_step("followed", 10)
    local.coordinator.kill()
    local.coordinator.start()
    local.wait_for_step("followed", 20)
    # As systemd does: here the server itself ends the streams.
    assert local.coordinator.stop() == 0
    local.coordinator.start()
    local.wait_for_step("followed", local.step("followed") + 3)
    local.ctl("cancel", "followed")
    results = {name: f.end(0 if name in ("logs", "events") else 103)
               for name, f in followers.items()}
    for name, (_, err) in results.items():
        # Both absences are one to a follower that has not come back between.
        away = err.count("the coordinator is away")
        assert away in (1, 2), (name, err)
        assert err.count("the coordinator is back") == away, (name, err)
    for name in ("logs", "events"):
        assert results[name][0] == local.ctl(name, "followed").stdout, \
            results[name]
    lines = [line for line in results["follow"][0].splitlines()
             if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == \
        [f"{step}/{STEPS}" for step in range(1, len(lines) + 1)], lines
    assert len(lines) > 20, lines
    assert "CANCELLED" in results["wait"][0], results["wait"]


def coordinator_stays_away(local, job_file):
    """Neither a time limit nor Ctrl-C touches the job."""
    local.submit("endless", job_file)
    local.wait_for_step("endless", 2)
    limited = [Follower(local, *verb, "endless", "--timeout", "20")
               for verb in (("logs", "-f"), ("events", "-f"), ("wait",))]
    interrupted = Follower(local, "wait", "endless")
    for follower in (*limited, interrupted):
        assert follower.process.stdout.readline(), "it follows"
    local.coordinator.kill()
    for follower in limited:
        _, err = follower.end(code=101)
        assert "the coordinator is away" in err, err
        assert "the job goes on" in err, err
    interrupted.process.send_signal(signal.SIGINT)
    _, err = interrupted.end(code=101)
    assert "detached (Ctrl-C); the job goes on" in err, err
    local.coordinator.start()
    nodes.eventually(lambda: (local.job("endless") or {}).get("state") ==
                     "JOB_STATE_RUNNING", 30, "the job goes on")
    local.ctl("cancel", "endless")
    local.ctl("wait", "endless")


def job_is_held(local, job_file):
    """A loss that is not finite even after a replay needs a person."""
    local.submit("diverges", job_file)
    result = local.ctl("wait", "diverges", "--timeout", "120s")
    assert result.returncode == 101, result.stdout
    job = local.job("diverges")
    assert job["state"] == "JOB_STATE_HELD", job
    held = f"HELD {job['jobId']} (NUMERICAL): {job['reason']}\n"
    assert held in result.stdout, result.stdout
    # Who follows a job that rests already is told the same at once.
    assert held in local.ctl("wait", "diverges").stdout
    assert "Held" in local.ctl("events", "diverges").stdout


def main():
    data = cluster.shared_data()
    if data is None:
        cluster.skip("shared/data is absent (set QLORA_SHARED_DATA)")
    models = data / "models"

    def job(rate=1e-3, decay=0):
        return JOB.format(model=models / "stories260K", steps=STEPS, rate=rate,
                          decay=decay)

    with nodes.Nodes({"one": 1}, [models]) as local:
        (local.directory / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        # Each step multiplies the weights by -9999.
        job_is_held(local, job(rate=100, decay=100))
        coordinator_goes_and_comes_back(local, job())
        coordinator_stays_away(local, job())
    print("nothing was lost or repeated")


if __name__ == "__main__":
    main()
