"""A cohort whose scans are done by a small process in the place of ANTs: who stays, who goes."""

import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import spawn  # noqa: F401  (keeps the real Python for workers)
from pathlib import Path

import pandas as pd
import pytest

import scalebrain
from scalebrain import cli, open_client
from scalebrain.atlas.space import SPACE
from scalebrain.errors import ConfigError, ScalebrainError, StoreBusyError
from scalebrain.io.preprocessed import is_preprocessed
from scalebrain.io.sources import find_cohort
from scalebrain.preprocessing import cohort, subject
from scalebrain.preprocessing.child import Task
from scalebrain.preprocessing.derivatives import hold, remove_scan
from scalebrain.preprocessing.settings import MEMORY, Settings, scans_at_once

PYTHON = sys.executable
# Does what the first line of the T1w image says, and writes as the real process does.
CHILD = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
job_file = Path(sys.argv[-1])
job = json.loads(job_file.read_text())
out = Path(job["out"])
anat = out / job["person"] / job["session"] / "anat"
anat.mkdir(parents=True, exist_ok=True)
how = Path(job["t1w"]).read_text().split()[0]
with open(out.parent / "begun.txt", "a") as log:
    log.write(job["name"] + " " + os.environ["MKL_NUM_THREADS"] + "\\n")
with open(out.parent / "environment.json", "w") as file:
    json.dump(dict(os.environ), file)
endings = ["label-L_mask.nii.gz"] if job["lesion"] else []
endings += ["desc-preproc_T1w.nii.gz", "label-GM_probseg.nii.gz"]
files = {{}}
for ending in endings:
    path = anat / f"{{job['name']}}_space-{space}_{{ending}}"
    path.write_text(ending)
    files[str(path.relative_to(out))] = path.stat().st_size
    if how == "crash":
        (anat / f".{{path.name}}.0123abcd.part").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "full":
        sys.exit("OSError: [Errno 28] No space left on device")
    if how == "bad":
        job_file.with_suffix(".result").write_text(json.dumps(
            {{"code": "lesion-outside-brain", "error": job["shown"][-1] + ": outside."}}))
        sys.exit(0)
    if how == "slow":
        from scalebrain.preprocessing.child import end_with_parent
        end_with_parent(job["parent"])
        (out.parent / "numbers").write_text(f"{{os.getpid()}} {{os.getppid()}}\\n")
        time.sleep(300)
record = {{"fingerprint": job["fingerprint"], "files": files, "settings": job["settings"],
          "sources": job["sources"], "warnings": []}}
(anat / f"{{job['name']}}_desc-qc_quality.json").write_text(json.dumps(record))
job_file.with_suffix(".result").write_text(json.dumps(record))
"""


@pytest.fixture(autouse=True)
def child(tmp_path_factory, monkeypatch):
    """Scans are done by the small process."""
    script = tmp_path_factory.mktemp("bin") / "python"
    script.write_text(CHILD.format(python=sys.executable, space=SPACE))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", os.fspath(script))
    monkeypatch.setattr(cohort, "check_ants", lambda: None)


def write(root: Path, *names: str, text: str = "good") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def scans(root: Path, *people: str, text: str = "good") -> Path:
    return write(root, *(f"{one}/anat/{one}_T1w.nii.gz" for one in people), text=text)


def mask_of(one: str) -> str:
    return f"{one}/anat/{one}_label-L_mask.nii.gz"


def groups(root: Path, **people: str) -> None:
    rows = "".join(f"{one.replace('_', '-')}\t{group}\n" for one, group in people.items())
    (root / "participants.tsv").write_text("participant_id\tgroup\n" + rows)


def begun(out: Path) -> list[str]:
    """Scans whose process has begun, since the last look."""
    path = out.parent / "begun.txt"
    names = [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(names)


def codes(table: pd.DataFrame, action: str = "E") -> dict[str, str]:
    chosen = table[table["action"] == action]
    return dict(zip(chosen["subject"], chosen["code"], strict=True))


def files_of(out: Path, one: str) -> list[str]:
    return sorted(path.name for path in (out / one).rglob("*") if path.is_file())


def test_preprocess__one_that_crashes_stops_nobody(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-3"), tmp_path / "out"
    scans(root, "sub-2", text="crash")
    table = scalebrain.preprocess(root, out)
    failed = table[table["action"] == "E"]
    assert failed["subject"].tolist() == ["sub-2"]
    assert "signal 9" in failed["message"].item()
    assert failed["file"].item() == "sub-2/anat/sub-2_T1w.nii.gz"
    assert table.attrs == {"n_done": 2, "n_resumed": 0, "n_failed": 1}
    assert not (out / "sub-2").exists()
    assert len(files_of(out, "sub-3")) == 3
    again = scalebrain.preprocess(root, out)
    assert again.attrs == {"n_done": 0, "n_resumed": 2, "n_failed": 1}


def test_run_scan__runs_no_code_of_the_current_folder(tmp_path, monkeypatch):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    monkeypatch.setattr(sys, "executable", PYTHON)
    for name in ("nibabel", "json"):
        (root / f"{name}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(root)
    table = scalebrain.preprocess(root, out)
    assert codes(table) == {"sub-1": "not-nifti"}  # by the real process
    assert not (root / "ran").exists()


def test_preprocess__a_full_disk_is_said_to_be_one(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", text="full"), tmp_path / "out"
    table = scalebrain.preprocess(root, out)
    failed = table[table["action"] == "E"]
    assert "Free space and run the same command again" in failed["message"].item()
    assert "Look at the scan" not in failed["message"].item()
    assert not (out / "sub-1").exists()


def test_run_job__a_full_disk_is_a_result(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(subject, "process", fill)
    job = {"name": "sub-1", "t1w": "x", "lesion": "", "settings": Settings().to_json()}
    found = subject.run_job(job)
    assert found["code"] == "preprocessing-failed"
    assert found["error"].startswith("sub-1: no space left on the disk")


def test_preprocess__names_the_mask_where_it_is_what_is_wrong(tmp_path):
    root = scans(tmp_path / "raw", "sub-1", text="bad")
    write(root, mask_of("sub-1"))
    table = scalebrain.preprocess(root, tmp_path / "out")
    assert codes(table) == {"sub-1": "lesion-outside-brain"}
    assert table["file"].item() == mask_of("sub-1")


@pytest.mark.parametrize("change", ["group", "second scan", "second mask", "no mask"])
def test_preprocess__removes_what_it_wrote_of_someone_who_is_now_left_out(tmp_path, change):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    write(root, mask_of("sub-2"))
    groups(root, sub_1="reference", sub_2="stroke")
    assert scalebrain.preprocess(root, out).attrs["n_done"] == 2
    mine = write(out, "sub-1/anat/sub-1_notes.txt", "sub-1/anat/sub-1_space-other_T1w.nii.gz")
    write(out, "sub-2/anat/sub-2_mine_desc-preproc_T1w.nii.gz")
    left, code = "sub-1", "several-images"
    if change == "group":
        groups(root, sub_1="stroke", sub_2="stroke")
        code = "mask-needed"
    elif change == "second scan":
        write(root, "sub-1/anat/sub-1_run-2_T1w.nii.gz")
    elif change == "second mask":
        left = "sub-2"
        write(root, "sub-2/anat/sub-2_label-lesion_roi.nii.gz")
    else:
        left, code = "sub-2", "mask-needed"
        (root / mask_of("sub-2")).unlink()
    table = scalebrain.preprocess(root, out)
    assert codes(table) == {left: code}
    assert table.attrs["n_resumed"] == 1
    assert files_of(mine, left) == (
        ["sub-1_notes.txt", "sub-1_space-other_T1w.nii.gz"]
        if left == "sub-1"
        else ["sub-2_mine_desc-preproc_T1w.nii.gz"]
    )


def test_preprocess__a_person_who_gets_sessions_loses_the_scan_without_one(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    scalebrain.preprocess(root, out)
    shutil.rmtree(root / "sub-1")
    write(root, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz")
    scalebrain.preprocess(root, out)
    assert not (out / "sub-1" / "anat").exists()
    assert len(files_of(out, "sub-1/ses-a")) == 3


def test_preprocess__keeps_the_values_of_sessions(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    write(root, *(f"sub-1/ses-{s}/anat/sub-1_ses-{s}_T1w.nii.gz" for s in "ab"))
    table = "session_id\tage\nses-a\t60\nses-b\t61.5\n"
    write(root, "sub-1/sub-1_sessions.tsv", text=table)
    write(root, "sessions.json", text="{}")
    scalebrain.preprocess(root, out)
    assert (out / "sub-1" / "sub-1_sessions.tsv").read_text() == table
    assert (out / "sessions.json").read_text() == "{}"


def test_preprocess__removes_the_copy_of_a_table_that_is_taken_out(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    write(root, *(f"sub-1/ses-{s}/anat/sub-1_ses-{s}_T1w.nii.gz" for s in "ab"))
    groups(root, sub_1="reference")
    tables = ["participants.json", "sessions.json"]
    tables += ["sub-1/sub-1_sessions.tsv", "sub-1/sub-1_sessions.json"]
    write(root, *tables, text="{}")
    write(out, "log.jsonl", "sub-9/sub-9_sessions.tsv")  # a person who was not asked for
    write(out, ".bidsignore", text="problems.tsv\n*_xfm.*\n*_quality.json\n")
    scalebrain.preprocess(root, out)
    assert [name for name in tables if (out / name).is_file()] == tables
    for name in tables:
        (root / name).unlink()
    (root / "participants.tsv").rename(root / "participants.csv")
    text = (root / "participants.csv").read_text().replace("\t", ",")
    (root / "participants.csv").write_text(text)
    assert scalebrain.preprocess(root, out).attrs["n_resumed"] == 2
    assert [name for name in (*tables, "participants.tsv") if (out / name).exists()] == []
    assert (out / "participants.csv").read_text() == text
    assert (out / "sub-9" / "sub-9_sessions.tsv").is_file()


def test_preprocess__without_a_table_leaves_the_users_own(tmp_path, caplog):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    scalebrain.preprocess(root, out)
    mine = ["participants.tsv", "participants.json", "sub-1/sub-1_sessions.tsv"]
    write(out, *mine)
    with caplog.at_level("WARNING", "scalebrain"):
        scalebrain.preprocess(root, out)
    assert [name for name in mine if (out / name).is_file()] == mine
    assert "participants.tsv is kept" in caplog.text


@pytest.mark.parametrize("table", [False, True])
def test_preprocess__who_is_left_out_has_no_table_of_sessions(tmp_path, table):
    root, out = tmp_path / "raw", tmp_path / "out"
    write(root, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/sub-1_sessions.tsv")
    scans(root, "sub-2")
    if table:
        groups(root, sub_1="reference", sub_2="reference")
    scalebrain.preprocess(root, out)
    assert (out / "sub-1/sub-1_sessions.tsv").is_file()
    write(root, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", text="crash")
    assert codes(scalebrain.preprocess(root, out)) == {"sub-1_ses-a": "preprocessing-failed"}
    assert not (out / "sub-1").exists()


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        ("sub-1/sub-1_sessions.tsv", "secret.txt", "leaves-tree"),
        ("sub-1/sub-1_sessions.json", "secret.txt", "leaves-tree"),
        ("sessions.json", "secret.txt", "leaves-tree"),
        ("sub-1/sub-1_sessions.tsv", "raw/.git/annex/objects/x", "pointer"),
        ("sub-1/sub-1_sessions.tsv", "raw/gone.tsv", "unreadable"),
    ],
)
def test_preprocess__copies_no_table_that_leads_out_or_to_nothing(tmp_path, name, target, code):
    root, out = scans(tmp_path / "raw", "sub-2"), tmp_path / "out"
    write(tmp_path, "secret.txt", text="of another folder")
    write(root, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/sub-1_sessions.tsv")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / target)
    table = scalebrain.preprocess(root, out)
    assert codes(table) == {"sub-1_ses-a": code}
    failed = table[table["action"] == "E"]
    assert failed["file"].item() == name
    assert str(tmp_path) not in failed["message"].item().replace(str(root), "")
    assert not (out / name).exists()
    assert not (out / "sub-1").exists()
    assert len(files_of(out, "sub-2")) == 3


def test_remove_scan__takes_parts_and_leaves_files_of_others(tmp_path):
    anat = tmp_path / "sub-1" / "anat"
    stem = f"sub-1_space-{SPACE}_res-2_desc-preproc_T1w"
    ours = [f"{stem}.nii.gz", f"{stem}.json", f".{stem}.nii.gz.0123abcd.part"]
    ours += [f".sub-1_from-T1w_to-{SPACE}_mode-image_desc-affine_xfm.mat.part"]
    theirs = [f"sub-10_space-{SPACE}_label-L_mask.nii.gz", f"{stem}_copy.nii.gz", "x.part"]
    write(anat, *ours, *theirs)
    assert remove_scan(tmp_path, "sub-1", "")
    assert sorted(os.listdir(anat)) == sorted(theirs)
    assert not remove_scan(tmp_path, "sub-1", "")


@pytest.mark.parametrize("change", ["mask", "setting", "output", "version", "lesions", "nothing"])
def test_preprocess__does_again_what_has_changed_and_nothing_else(tmp_path, monkeypatch, change):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    write(root, mask_of("sub-1"))
    scalebrain.preprocess(root, out)
    assert begun(out) == ["sub-1", "sub-2"]
    options, expected = {}, ["sub-1"]
    if change == "mask":
        write(root, mask_of("sub-1"), text="other")
    elif change == "setting":
        options, expected = {"fill": "enantiomorphic"}, ["sub-1", "sub-2"]
    elif change == "output":
        next((out / "sub-1" / "anat").glob("*label-L_mask*")).unlink()
    elif change == "version":
        monkeypatch.setattr(cohort, "versions", lambda: {"template_sha256": "other"})
        expected = ["sub-1", "sub-2"]
    elif change == "lesions":  # the same mask, of another dataset
        shutil.copytree(root / "sub-1", tmp_path / "masks" / "sub-1")
        (root / mask_of("sub-1")).unlink()
        options = {"lesions": tmp_path / "masks"}
    else:
        options, expected = {"threads": 2}, []
    scalebrain.preprocess(root, out, **options)
    assert begun(out) == expected


def test_preprocess__sources_name_the_folder_of_the_masks(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    masks = write(tmp_path / "masks", mask_of("sub-1"))
    scalebrain.preprocess(root, out, lesions=masks)
    record = json.loads((out / "sub-1/anat/sub-1_desc-qc_quality.json").read_text())
    assert record["sources"] == [
        "bids:raw:sub-1/anat/sub-1_T1w.nii.gz",
        f"bids:lesions:{mask_of('sub-1')}",
    ]
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetLinks"] == {"raw": root.as_uri(), "lesions": masks.as_uri()}
    assert str(tmp_path) not in json.dumps(record)


def test_preprocess__keeps_the_rows_of_those_who_were_not_asked_for(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2", "sub-3"), tmp_path / "out"
    groups(root, sub_1="stroke", sub_2="stroke", sub_3="reference")
    scalebrain.preprocess(root, out)
    write(root, mask_of("sub-1"))
    table = scalebrain.preprocess(root, out, participants=["1"])
    assert codes(table) == {}
    told = pd.read_csv(out / "problems.tsv", sep="\t", keep_default_na=False)
    assert codes(told) == {"sub-2": "mask-needed"}
    scalebrain.preprocess(root, out)
    told = pd.read_csv(out / "problems.tsv", sep="\t", keep_default_na=False)
    assert codes(told) == {"sub-2": "mask-needed"}


def test_preprocess__quick_and_full_do_not_share_a_folder(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    scalebrain.preprocess(root, out, quick=True)
    with pytest.raises(ConfigError, match="2 scans made with --quick"):
        scalebrain.preprocess(root, out, participants=["1"])
    assert len(files_of(out, "sub-1")) == 3


def test_preprocess__without_ages_or_a_table_that_can_be_read_goes_on(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    groups(root, sub_1="stroke", sub_2="control")
    table = scalebrain.preprocess(root, out)
    assert codes(table) == {"sub-1": "mask-needed"}
    (root / "participants.tsv").rename(root / "people.tsv")
    text = (root / "people.tsv").read_text().replace("participant_id", "BIDS_ID")
    (root / "people.tsv").write_text(text)
    assert codes(scalebrain.preprocess(root, tmp_path / "b")) == {"sub-1": "mask-needed"}
    (root / "participants.tsv").write_text("age\n61\n")
    table = scalebrain.preprocess(root, tmp_path / "c")
    assert codes(table) == {}
    assert table["code"].tolist() == ["taken-as-reference"] * 3
    assert "no column of ids" in table["message"][0]
    assert str(tmp_path) not in table["message"][0]


def test_preprocess__a_folder_with_a_log_and_hidden_files_is_as_good_as_empty(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    write(out, "log.jsonl", ".DS_Store")
    scalebrain.preprocess(root, out)
    mark = out / ".bidsignore"
    mark.write_text("mine.txt\n" + mark.read_text())  # lines of the user's own
    write(out, "mine.txt")
    assert scalebrain.preprocess(root, out).attrs["n_resumed"] == 1
    assert mark.read_text().startswith("mine.txt\n")
    assert is_preprocessed(out)
    assert not is_preprocessed(root)


def test_find_cohort__leaves_scans_out_that_are_not_whole(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2", "sub-3"), tmp_path / "out"
    write(root, mask_of("sub-2"))
    (root / "participants.tsv").write_text(
        "participant_id\tage\n" + "".join(f"sub-{i}\t60\n" for i in (1, 2, 3))
    )
    scalebrain.preprocess(root, out)
    (out / "sub-1/anat/sub-1_desc-qc_quality.json").unlink()
    next((out / "sub-2/anat").glob("*label-L_mask*")).unlink()
    found = find_cohort(out)
    assert [scan.subject for scan in found.scans] == ["sub-3"]
    told = {problem.subject: problem for problem in found.rejected}
    assert {problem.code for problem in told.values()} == {"preprocessing-failed"}
    assert "sub-1_desc-qc_quality.json: missing or damaged" in told["sub-1"].message
    assert "label-L_mask.nii.gz: missing or damaged" in told["sub-2"].message
    (out / ".bidsignore").unlink()  # another folder, of which nothing is known
    assert [scan.subject for scan in find_cohort(out).scans] == ["sub-1", "sub-2", "sub-3"]


def test_preprocess__another_command_at_a_scan_is_left_alone(tmp_path, monkeypatch):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(cohort, "Task", functools.partial(Task, wait=0.1))
    theirs = write(out, "sub-1/anat/sub-1_desc-qc_quality.json")
    (out / ".bidsignore").write_text("problems.tsv\n*_xfm.*\n*_quality.json\n")
    with hold(out, "sub-1"):
        table = scalebrain.preprocess(root, out)
    failed = table[table["action"] == "E"]
    assert failed["subject"].tolist() == ["sub-1"]
    assert "another scalebrain preprocess is at it" in failed["message"].item()
    assert files_of(theirs, "sub-1") == ["sub-1_desc-qc_quality.json"]
    groups(root, sub_1="stroke", sub_2="reference")
    with hold(out, "sub-1"), pytest.raises(StoreBusyError, match="Wait for it to end"):
        scalebrain.preprocess(root, out)


def test_preprocess__workers_that_are_lost_stop_nobody_else(tmp_path, monkeypatch):
    root, out = scans(tmp_path / "raw", "sub-1", "sub-2", "sub-3"), tmp_path / "out"
    calls = []

    def lose(function, tasks, **_):
        calls.append([task.name for task in tasks])
        if len(calls) == 1:
            function(tasks[0])
        raise ScalebrainError("a task died with every worker that took it.")

    monkeypatch.setattr(cohort, "map_tasks", lose)
    table = scalebrain.preprocess(root, out)
    assert calls == [["sub-1", "sub-2", "sub-3"], ["sub-2", "sub-3"]]
    assert codes(table) == dict.fromkeys(("sub-2", "sub-3"), "preprocessing-failed")
    assert table.attrs == {"n_done": 1, "n_resumed": 0, "n_failed": 2}
    assert (out / "dataset_description.json").is_file()


@pytest.mark.parametrize(
    ("cores", "memory", "threads", "expected"),
    [(8, 64, 1, 8), (8, 64, 4, 2), (8, 5, 1, 2), (2, 1, 4, 1)],
)
def test_scans_at_once__cores_over_threads_and_2_gb_each(
    monkeypatch, cores, memory, threads, expected
):
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory * 10**9)
    assert scans_at_once(threads) == expected
    assert scans_at_once(threads, memory=MEMORY) == 1


def test_cli__so_many_scans_run_at_once_as_was_said(tmp_path, monkeypatch):
    root = scans(tmp_path / "raw", "sub-1")
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 * 10**9)
    told, opened = [], []

    def look(_, tasks, *, threads, **__):
        told.append(threads)
        return [{"warnings": []} for _ in tasks]

    def client(_spec, **options):
        opened.append(options["n_workers"])
        return open_client("threads")

    monkeypatch.setattr(cohort, "map_tasks", look)
    command = ["preprocess", str(root), "--threads", "4"]
    cli.main([*command, str(tmp_path / "a"), "--scheduler", "threads"])
    cli.main([*command, str(tmp_path / "b"), "--scheduler", "threads", "--n-workers", "1"])
    assert told == [2, 1]
    monkeypatch.setattr(scalebrain, "open_client", client)
    cli.main([*command, str(tmp_path / "c")])
    cli.main([*command, str(tmp_path / "d"), "--memory", "3GB"])
    cli.main([*command, str(tmp_path / "e"), "--n-workers", "5"])
    assert opened == [2, 1, 5]


def test_preprocess__each_process_has_the_threads_that_were_said(tmp_path):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    scalebrain.preprocess(root, out, threads=3)
    told = json.loads((tmp_path / "environment.json").read_text())
    names = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [told[name] for name in (*names, "MKL_NUM_THREADS")] == ["3"] * 4
    assert not Path(told["TMPDIR"]).exists()


def test_preprocess__on_dask_workers(tmp_path):
    from distributed import Client, LocalCluster

    root, out = scans(tmp_path / "raw", "sub-1", "sub-2"), tmp_path / "out"
    write(
        root, "sub-3/ses-a/anat/sub-3_ses-a_T1w.nii.gz", "sub-3/ses-b/anat/sub-3_ses-b_T1w.nii.gz"
    )
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=False
        ) as c,
        Client(c),
    ):
        table = scalebrain.preprocess(root, out)
    assert table.attrs == {"n_done": 4, "n_resumed": 0, "n_failed": 0}
    assert begun(out) == ["sub-1", "sub-2", "sub-3_ses-a", "sub-3_ses-b"]
    assert len(files_of(out, "sub-3/ses-b")) == 3


PARENT = """
import sys, subprocess
code = "import os, sys, time; from scalebrain.preprocessing.child import end_with_parent; " \\
       "end_with_parent(int(sys.argv[1])); print('ready', os.getpid(), flush=True); time.sleep(60)"
import os
subprocess.run([sys.executable, "-c", code, str(os.getpid())])
"""


def is_running(number: int) -> bool:
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(what) -> bool:
    until = time.monotonic() + 30
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(what())


def test_end_with_parent__ends_when_its_parent_is_killed():
    with subprocess.Popen([PYTHON, "-c", PARENT], stdout=subprocess.PIPE, text=True) as run:
        child = int(run.stdout.readline().split()[1])
        run.send_signal(signal.SIGKILL)
        assert wait_for(lambda: not is_running(child))


def test_preprocess__a_killed_worker_takes_its_process_along_and_another_goes_on(
    tmp_path, monkeypatch
):
    from distributed import Client, LocalCluster

    root, out = scans(tmp_path / "raw", "sub-1", text="slow"), tmp_path / "out"
    numbers, killed = tmp_path / "numbers", []

    def kill():
        if wait_for(lambda: numbers.exists() and numbers.read_text().endswith("\n")):
            killed.extend(int(number) for number in numbers.read_text().split())
            os.kill(killed[1], signal.SIGKILL)

    stand_in = sys.executable
    monkeypatch.setattr(sys, "executable", PYTHON)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as c,
        Client(c) as client,
    ):
        client.run(setattr, sys, "executable", stand_in)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(kill)
            table = scalebrain.preprocess(root, out)
    child, worker = killed
    assert not is_running(child)
    assert not is_running(worker)
    # the new worker has the real process, which finds no image: the lock was free by then
    assert codes(table) == {"sub-1": "not-nifti"}
    assert not (out / "sub-1").exists()


def test_hold__lasts_as_long_as_a_process_that_inherited_it(tmp_path):
    with hold(tmp_path, "sub-1") as lock:
        run = subprocess.Popen(["/bin/sleep", "60"], pass_fds=(lock,))
    with pytest.raises(StoreBusyError), hold(tmp_path, "sub-1"):
        pass
    run.kill()
    run.wait()
    with hold(tmp_path, "sub-1"):
        pass


def test_hold__where_there_are_no_locks_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level("WARNING", "scalebrain"), hold(tmp_path, "sub-1") as lock:
        assert lock is None
    assert "knows no locks" in caplog.text


def test_preprocess__removes_the_temporary_folder_of_a_killed_worker(tmp_path, monkeypatch):
    root, out = scans(tmp_path / "raw", "sub-1"), tmp_path / "out"
    place = tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(place))
    whose = hashlib.sha256(f"{out}|sub-1".encode()).hexdigest()[:16]
    write(place, f"scalebrain-{whose}-abc/warp.nii.gz", "scalebrain-other-abc/warp.nii.gz")
    scalebrain.preprocess(root, out)
    assert os.listdir(place) == ["scalebrain-other-abc"]
