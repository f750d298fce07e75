"""A real Prometheus scrapes both daemons and answers for a job's loss."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import cluster
import nodes

PROMETHEUS = cluster.DEPS / "prometheus/usr/bin"
CONFIGURATION = cluster.ROOT / "deploy/prometheus/prometheus.yml"
DOCUMENT = cluster.ROOT / "docs/metrics.md"
ONLY_WHILE_A_JOB_RUNS = {"qlora_device_assignment_info"}
DATA = cluster.token_rows(16, 64)
JOB = """\
apiVersion: qlora/v1
model: {{base: {model}}}
method: qlora
lora: {{rank: 4}}
data: {{train: [{{path: rows.jsonl, format: tokens}}], max_seq_len: 64, packing: false, eval_fraction: 0.25}}
train: {{max_steps: 12, global_batch_size: 4, learning_rate: 1e-3}}
eval: {{every: 4 steps}}
"""


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def is_ready(address):
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        return bool(get(f"http://{address}/-/ready"))
    return False


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_metrics(address):
    """promtool reads what a daemon serves and finds nothing to complain of."""
    text = get(f"http://{address}/metrics")
    result = subprocess.run(
        [PROMETHEUS / "promtool", "check", "metrics"], input=text, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert result.returncode == 0 and not result.stdout, \
        f"promtool check metrics of {address}:\n{result.stdout}"
    assert "\nqlora_" in text, f"no qlora_ series at {address}"


def names(text):
    """Metrics that a text names; a histogram's by its base name."""
    return set(re.findall(r"\bqlora_[a-z0-9_]+", text))


def check_documented(coordinator, worker):
    """docs/metrics.md lists what the daemons export: all of it, no more."""
    text = DOCUMENT.read_text(encoding="utf-8").split("## Prometheus")[1]
    exported = names("\n".join(
        line for address in (coordinator, worker)
        for line in get(f"http://{address}/metrics").splitlines()
        if line.startswith("# TYPE")))
    assert exported <= names(text), exported - names(text)
    assert names(text) - exported <= ONLY_WHILE_A_JOB_RUNS, \
        names(text) - exported


@contextlib.contextmanager
def prometheus(local, directory):
    """The configuration that we ship, with this run's ports."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for usual, actual in (("127.0.0.1:9464", local["metrics"]),
                          ("127.0.0.1:9465", local["worker_metrics"]),
                          ("scrape_interval: 15s", "scrape_interval: 1s")):
        assert usual in text, f"{CONFIGURATION} lacks {usual}"
        text = text.replace(usual, actual)
    configuration = pathlib.Path(directory) / "prometheus.yml"
    configuration.write_text(text, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    log_path = pathlib.Path(directory) / "prometheus.txt"
    with open(log_path, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [PROMETHEUS / "prometheus", f"--config.file={configuration}",
             f"--storage.tsdb.path={directory}/tsdb",
             f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        nodes.eventually(lambda: is_ready(address), 30, "Prometheus is ready")
        yield f"http://{address}"
    except BaseException:
        print(log_path.read_text(encoding="utf-8")[-4000:])
        raise
    finally:
        process.terminate()
        process.wait(timeout=30)


def query(server, expression):
    url = f"{server}/api/v1/query?" + urllib.parse.urlencode(
        {"query": expression})
    answer = json.loads(get(url))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def main():
    data = cluster.shared_data()
    if data is None:
        cluster.skip("shared/data is absent (set QLORA_SHARED_DATA)")
    if not os.access(PROMETHEUS / "prometheus", os.X_OK):
        cluster.skip("Prometheus is absent (run scripts/setup --test)")
    models = data / "models"
    with cluster.Cluster(ranks=2, model_roots=[models]) as local, \
            prometheus(local.local, local.directory) as server:
        local.write("rows.jsonl", DATA)
        local.run("scraped", JOB.format(model=models / "stories260K"))
        job = json.loads(local.ctl("get", "scraped", "-o", "json").stdout)
        up = nodes.eventually(lambda: len(query(server, "up == 1")) == 2, 30,
                              "both daemons are up")
        assert up
        [series] = nodes.eventually(
            lambda: query(server,
                          f'qlora_train_loss{{job_id="{job["jobId"]}"}}'),
            30, "qlora_train_loss is scraped")
        loss = float(series["value"][1])
        # Logged figures are those of job progress.
        assert abs(loss - job["progress"]["loss"]) < 1e-6, (loss, job)
        check_metrics(local.local["metrics"])
        check_metrics(local.local["worker_metrics"])
        check_documented(local.local["metrics"], local.local["worker_metrics"])
        builds = query(server, "qlora_build_info")
        assert len(builds) == 2 and all(
            {"version", "revision", "torch", "cuda"} <= set(b["metric"])
            for b in builds), builds
    print(f"qlora_train_loss = {loss}")


if __name__ == "__main__":
    main()
