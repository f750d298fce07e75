"""One gang over two workers gives the numbers of a gang on one, bit for bit."""

import json
import os

import cluster
import faults_test
import nodes


def losses(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def main():
    data = cluster.shared_data()
    if data is None:
        cluster.skip("shared/data is absent (set QLORA_SHARED_DATA)")
    models = data / "models"
    results = {}
    # Two machines would not share a core.
    cores = {"two": {max(os.sched_getaffinity(0))}}
    with nodes.Nodes({"one": 2, "two": 1}, [models], cores) as local:
        (local.directory / "rows.jsonl").write_text(faults_test.ROWS,
                                                    encoding="utf-8")
        for name, count, ranks in (("together", 1, 2), ("apart", 2, 1)):
            local.submit(name, faults_test.JOB.format(
                model=models / "stories260K", steps=20, nodes=count,
                ranks=ranks))
            job = local.wait_for_success(name)
            placed = {rank["node"] for rank in job["ranks"]}
            assert len(placed) == count, placed
            results[name] = losses(local.output(name))
    assert len(results["together"]) == 20
    assert results["together"] == results["apart"], results
    print("20 losses are equal")


if __name__ == "__main__":
    main()
