# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # On a cluster and in a bucket
#
# The same calls on many machines, with the store in object storage. This notebook rehearses that on
# one machine: worker processes stand for the nodes of a cluster, and a server of S3 (moto) for the
# bucket. What it shows holds for the real ones: the same numbers to the last bit, a worker that
# dies costs nothing but time, and what a read costs in requests.
#
# It takes 20 people of the simulated cohort that `make demo` leaves in `demo-out`; set
# `SCALEBRAIN_STUDY` to another study whose scans lie in a folder `bids` inside or beside it. It
# needs the packages of the tests: `pip install "scalebrain[test]"`.

# %%
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import boto3
import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from distributed import Client, LocalCluster, get_task_stream
from moto.server import ThreadedMotoServer

import scalebrain as sb

study = Path(os.environ.get("SCALEBRAIN_STUDY", "../demo-out")).resolve()
bids = next(folder for folder in (study / "bids", study.parent / "bids") if folder.is_dir())

work = Path(tempfile.mkdtemp())
table = pd.read_csv(bids / "participants.tsv", sep="\t")
chosen = pd.concat([table[table["group"] == g][:10] for g in ("reference", "stroke")])
for subject in chosen["participant_id"]:
    shutil.copytree(bids / subject, work / "bids" / subject)
shutil.copy(bids / "dataset_description.json", work / "bids")
chosen.to_csv(work / "bids" / "participants.tsv", sep="\t", index=False)

# %% [markdown]
# ## First without any of it
#
# On disk, with threads of this process: what the others have to equal.


# %%
def compute(ds):
    """Compute the node features and the lesion loads of everyone."""
    steps = (sb.node_features(ds), sb.lesion_load(ds), sb.tract_load(ds))
    return xr.merge(steps, join="exact", compat="equals", combine_attrs="drop_conflicts").load()


local = work / "local.zarr"
begin = time.perf_counter()
sb.ingest(work / "bids", local)
ingested = time.perf_counter()
on_disk = compute(sb.open_store(local))
seconds = {"disk, threads": (ingested - begin, time.perf_counter() - ingested)}

# %% [markdown]
# ## A bucket
#
# Where a bucket lies and who may read it stands in the environment, as for every other S3 client,
# and never in a url. With a real bucket leave the endpoint out and use your profile or the
# machine's role.

# %%
requests = Counter()


class Count(logging.Handler):
    """Count the requests that the server answers."""

    def emit(self, record):
        """Count one."""
        requests.update(re.findall(r'"(\w+) /', record.getMessage())[:1])


log = logging.getLogger("werkzeug")
log.addHandler(Count())
log.setLevel(logging.INFO)
log.propagate = False

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
os.environ |= {
    "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": "rehearsal",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}
s3 = boto3.client("s3")
s3.create_bucket(Bucket="cohorts")
store = "s3://cohorts/demo.zarr"

# %% [markdown]
# ## A cluster
#
# scalebrain runs on whatever Dask client is active, and on threads where there is none. On SLURM or
# Kubernetes only this cell differs:
#
# ```python
# with sb.open_client("slurm:cpu") as client:       # pip install "scalebrain[cluster]"
#     ...                                           # or "kubernetes:cluster.yaml", "gateway:URL"
# ```
#
# One thread a worker, 2 to 4 GB each. Every worker has to see the scans (a shared file system).
# From a shell: `scalebrain run BIDS OUT --scheduler slurm:cpu`. docs/clusters.md has the profiles.

# %%
cluster = LocalCluster(
    n_workers=2,
    threads_per_worker=1,
    host="127.0.0.1",
    dashboard_address="127.0.0.1:0",
    silence_logs=logging.CRITICAL,
)
client = Client(cluster)
print("dashboard while this notebook runs:", client.dashboard_link)

# %% [markdown]
# ## Ingest, and a worker dies
#
# A task writes 16 people, all of a shard, and its record last. One worker is killed in the middle.

# %%
pids = client.run(os.getpid)
victim = min(pids)


def kill():
    """Kill a worker that is at work, as a node that fails or a job that is preempted."""
    while not client.processing().get(victim):
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(pids[victim], signal.SIGKILL)


murder = threading.Thread(target=kill, daemon=True)
murder.start()
begin = time.perf_counter()
sb.ingest(work / "bids", store)
ingested = time.perf_counter() - begin
murder.join(timeout=1)
client.wait_for_workers(2)
gone = pids[victim] not in client.run(os.getpid).values()
print(f"ingested in {ingested:.1f} s; the killed worker is gone: {gone}")

# %% [markdown]
# Every object in the bucket equals the one on disk, byte for byte: the worker that died left no
# trace.
# (When the whole job is killed, the same command goes on where it was.)

# %%
in_bucket = {
    one["Key"].removeprefix("demo.zarr/"): one["Size"]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="cohorts")
    for one in page["Contents"]
}
on_drive = {str(f.relative_to(local)): f for f in local.rglob("*") if f.is_file()}
same = [
    s3.get_object(Bucket="cohorts", Key=f"demo.zarr/{key}")["Body"].read() == path.read_bytes()
    for key, path in on_drive.items()
    if key in in_bucket
]
print(f"{len(in_bucket)} objects in the bucket, {len(on_drive)} files, {sum(same)} of them equal")

# %% [markdown]
# ## Compute on the workers, from the bucket
#
# `open_store` takes the url. The task stream is what the dashboard shows live: a bar is a task. The
# first task of a worker loads its libraries, so a few people win nothing from a cluster.

# %%
ds = sb.open_store(store)
requests.clear()
begin = time.perf_counter()
with get_task_stream(client) as stream:
    from_bucket = compute(ds)
seconds["bucket, 2 workers"] = (ingested, time.perf_counter() - begin)
print("bit-identical:", from_bucket.equals(on_disk))
print("requests:", dict(requests))
pd.DataFrame(seconds, index=["ingest, s", "compute, s"]).round(1)

# %%
workers = sorted({task["worker"] for task in stream.data})
start = min(task["startstops"][0]["start"] for task in stream.data)
fig, axis = plt.subplots(figsize=(10, 1.6), layout="constrained")
for task in stream.data:
    row = (workers.index(task["worker"]) - 0.35, 0.7)
    for part in task["startstops"]:
        span = (part["start"] - start, part["stop"] - part["start"])
        axis.broken_barh([span], row, color="#0072b2", edgecolor="white")
axis.set_yticks(range(len(workers)), [f"worker {i + 1}" for i in range(len(workers))])
axis.set_xlabel(f"seconds, {len(stream.data)} tasks")
plt.show()

# %% [markdown]
# ## Sizes and tasks
#
# A shard holds the rows of 16 people, and ingest has one task a shard. A computation reads rows one
# by one, up to 128 MiB of them a task; in a small cohort fewer, so that all workers have some.
# Tasks grow with the people, memory does not.

# %%
rows = []
for name in ("t1w", "gm", "lesion_mask"):
    stored = [size for key, size in in_bucket.items() if key.startswith(f"{name}/c/")]
    rows.append(
        {
            "array": name,
            "shape": " x ".join(map(str, ds[name].shape)),
            "MB as an array": ds[name].nbytes / 1e6,
            "MB stored": sum(stored) / 1e6,
            "objects": len(stored),
            "kB a person": sum(stored) / 1e3 / ds.sizes["subject"],
        }
    )
pd.DataFrame(rows).set_index("array").round(1)

# %%
features = sb.node_features(ds)["node_features"]
print(
    f"node features: {features.data.npartitions} blocks and {len(features.__dask_graph__())} tasks"
)
for people in (500, 5_000, 50_000):
    size = people * ds["t1w"].nbytes / ds.sizes["subject"] / 1e9
    print(
        f"{people:>6} people: {-(-people // 16):>5} blocks of t1w, {size:,.1f} GB if it were loaded"
    )

# %% [markdown]
# ## What a read costs
#
# In a bucket far away a request takes as long as reading some megabytes. One person is the index of
# a shard and one range of it; one voxel of everyone touches every shard, and every row has to be
# decoded.


# %%
def cost(what, values):
    """Read, and count requests and time."""
    requests.clear()
    begin = time.perf_counter()
    values.compute(scheduler="single-threaded")
    spent = time.perf_counter() - begin
    return {"read": what, "requests": requests["GET"] + requests["HEAD"], "ms": 1000 * spent}


one_node = sb.node_features(ds)["node_features"].isel(subject=[3])
reads = [
    cost("ages of all", sb.open_store(store)["age"]),
    cost("t1w of one person", ds["t1w"].isel(subject=3)),
    cost("t1w of 16 people, a shard", ds["t1w"].isel(subject=slice(16))),
    cost("node features of one person", one_node),
    cost("one voxel of all", ds["t1w"].isel(voxel=5000)),
    cost("t1w of all", ds["t1w"]),
]
pd.DataFrame(reads).set_index("read").round(1)

# %% [markdown]
# ## Give it back

# %%
client.close()
cluster.close()
server.stop()
shutil.rmtree(work)
