import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import scalebrain
from scalebrain import cli
from scalebrain.cli.app import _ending_signals
from scalebrain.cli.logfile import log_to
from scalebrain.cli.study import log_of_study
from scalebrain.cli.watch import _plain_progress
from scalebrain.report.versions import versions
from tests.phantom import image_path, write_tree


def run(capsys, *arguments):
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _logging():
    yield
    logging.getLogger("scalebrain").propagate = True


def test_main__ingest_prints_the_store_and_progress_lines(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    store = tmp_path / "c.zarr"
    code, out, err = run(capsys, "ingest", str(tree), str(store), "--scheduler", "threads")
    assert code == 0
    assert out.strip() == str(store)
    assert "ingest: 2/2" in err
    assert scalebrain.open_store(store).sizes["subject"] == 20


def test_main__users_mistake_is_one_message_and_exit_code_1(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    (tree / "participants.tsv").unlink()
    code, _, err = run(capsys, "ingest", str(tree), str(tmp_path / "c"), "--scheduler", "threads")
    assert code == 1
    assert "participants.tsv: missing" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["run", "ingest"])
def test_main__source_is_looked_at_before_workers_are_started(
    capsys, tmp_path, monkeypatch, command
):
    def opened(*_, **__):
        raise AssertionError("jobs are in the queue")

    monkeypatch.setattr(scalebrain, "open_client", opened)
    tree = write_tree(tmp_path / "bids")
    (tree / "participants.tsv").unlink()
    code, _, err = run(capsys, command, tree, tmp_path / "out", "--scheduler", "slurm:cpu")
    assert code == 1
    assert "participants.tsv: missing" in err


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("slurm:cpu", "lacks memory"),
        ("kubernetes:none.yaml", "none.yaml"),
        ("tpc://a:1", "is not known"),
    ],
)
def test_main__dry_run_refuses_a_scheduler_that_is_not_described(
    capsys, tmp_path, monkeypatch, scheduler, told
):
    monkeypatch.setenv("SCALEBRAIN_PROFILES", str(tmp_path / "profiles.yaml"))
    (tmp_path / "profiles.yaml").write_text("cpu: {}\n")
    tree = write_tree(tmp_path / "bids")
    options = ("--dry-run", "--scheduler", scheduler)
    code, _, err = run(capsys, "run", tree, tmp_path / "out", *options)
    assert code == 1
    assert told in err
    assert "Traceback" not in err


@pytest.fixture
def signals():
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(one, signal.SIG_DFL) for one in numbers]
    yield
    for one, handler in zip(numbers, before, strict=True):
        signal.signal(one, handler)


def end_twice(received):
    with _ending_signals(received):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)  # as a session that closes sends both


@pytest.mark.usefixtures("signals")
def test_ending_signals__the_first_ends_and_what_is_ignored_stays_so():
    received = []
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        end_twice(received)
    assert received == [signal.SIGTERM]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _ending_signals(received := []):
        signal.raise_signal(signal.SIGHUP)
    assert received == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("signals")
def test_ending_signals__a_later_one_ends_the_process_at_once():
    program = (
        "import signal, time\n"
        "from scalebrain.cli.app import _ending_signals\n"
        "with _ending_signals([]):\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        time.sleep(2.2)\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert ended.returncode == -signal.SIGTERM
    assert b"again ends at once" in ended.stderr


def test_main__usage_is_exit_code_2(capsys, tmp_path):
    assert run(capsys, "ingest", str(tmp_path / "none"), "x")[0] == 2
    assert run(capsys, "nonsense")[0] == 2


@pytest.mark.parametrize("words", [[], ["store"]])
def test_main__a_group_alone_shows_its_help_and_no_error(capsys, words):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: scalebrain")
    assert "error:" not in err
    assert f"See {' '.join(['scalebrain', *words])} --help" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("storee",), "Did you mean 'store'? See scalebrain --help."),
        (("store", "withdraw", "s"), "give a list of them. See scalebrain store withdraw --help."),
        (("site-summary", "s", "o.json", "--levels", "x"), "SECOND. See scalebrain site-summary"),
    ],
)
def test_main__usage_error_is_a_sentence_and_then_the_way_to_the_help(capsys, words, said):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err


def test_config__check_and_schema_exclude_each_other(capsys, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text("coverage: 0.8\n")
    code, out, err = run(capsys, "config", "--check", study, "--schema")
    assert (code, out) == (2, "")
    assert "Give one of them" in err


def test_main__unknown_scheduler_names_what_is_known(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    code, _, err = run(capsys, "ingest", str(tree), str(tmp_path / "c"), "--scheduler", "spark")
    assert code == 1
    assert "threads" in err


def test_main__version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.splitlines() == [f"{name} {found}" for name, found in versions().items()]
    assert out.startswith(f"scalebrain {scalebrain.__version__}\n")


def test_main__version_imports_nothing_of_what_it_names():
    code = (
        "import sys\n"
        "from scalebrain.cli import main\n"
        "main(['--version'])\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'numba', 'distributed', 'shap', 'nilearn'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def told_progress(capsys, label, *reports, total):
    """Lines of reports, each at a time in seconds."""
    show = _plain_progress(iter([now for now, _ in reports]).__next__)
    for _, done in reports:
        show(label, done, total)
    return capsys.readouterr().err.splitlines()


def test_plain_progress__tells_the_time_that_is_left(capsys):
    reports = [(0, 0), (10, 1), (11, 1), (12, 2), (400, 5), (401, 10)]
    assert told_progress(capsys, "ingest", *reports, total=10) == [
        "ingest: 0/10",
        "ingest: 1/10, about 2 min left",
        "ingest: 2/10, about 48 s left",
        "ingest: 5/10, about 7 min left",
        "ingest: 10/10 in 7 min",
    ]
    assert told_progress(capsys, "train", (0, 0), (9_000, 1), (18_000, 2), total=4) == [
        "train: 0/4",
        "train: 1/4, about 7 h 30 min left",
        "train: 2/4, about 5 h 0 min left",
    ]


def test_plain_progress__takes_the_rate_of_this_run_alone(capsys):
    assert told_progress(capsys, "features", (700, 50), (710, 60), (720, 100), total=100) == [
        "features: 50/100",
        "features: 60/100, about 40 s left",
        "features: 100/100 in 20 s",
    ]


def test_main__a_store_is_validated_ingested_looked_after(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids", n=6)
    bad = image_path(tree, "sub-003", "desc-preproc_T1w")
    good = bad.read_bytes()
    bad.write_bytes(good[:-500])
    store = tmp_path / "c.zarr"
    threads = ("--scheduler", "threads")
    code, out, _ = run(capsys, "validate", tree, *threads)
    assert (code, out.splitlines()[-1]) == (3, "5 subjects usable, 1 rejected, 0 warnings")
    assert "E [truncated] bids sub-003" in out
    assert run(capsys, "ingest", tree, store, *threads)[0] == 3
    assert run(capsys, "ingest", tree, store, "--strict", *threads)[0] == 1
    bad.write_bytes(good)
    assert run(capsys, "ingest", tree, store, *threads)[0] == 1
    assert run(capsys, "ingest", tree, store, "--update", *threads)[0] == 0
    code, out, _ = run(capsys, "store", "info", store)
    assert yaml.safe_load(out)["datasets"] == {"bids": 6}
    assert run(capsys, "store", "verify", store, *threads)[:2] == (0, f"{store}: intact\n")
    shard = store / "t1w" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-7])
    code, out, _ = run(capsys, "store", "verify", store, *threads)
    assert code == 1
    assert "t1w/c/0/0: missing or damaged (sub-000" in out
    assert run(capsys, "ingest", tree, store, "--verify", *threads)[0] == 0
    assert run(capsys, "store", "withdraw", store, "sub-002")[:2] == (
        0,
        "1 rows emptied, 1 of 1 people named were in the store; all of them are kept out\n",
    )
    assert run(capsys, "store", "withdraw", store, "sub-999")[0] == 1
    assert "sub-002" not in scalebrain.open_store(store)["subject"].values
    assert run(capsys, "ingest", tree, store, "--lesion-labels", "one", *threads)[0] == 2


def test_main__ages_of_another_tool_go_into_a_store(capsys, tmp_path):
    tree = write_tree(tmp_path / "bids")
    store, table = tmp_path / "c.zarr", tmp_path / "ages.csv"
    assert run(capsys, "ingest", tree, store, "--scheduler", "threads")[0] == 0
    table.write_text(
        "Subject,Brain_Age,brain_pad_corrected\nsub-000,60.5,1\n016,71,-2\n",
        encoding="utf-8-sig",
    )
    arguments = ("import-ages", store, table, "--tool", "brainageR", "--tool-version", "2.1")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (0, f"{store}\n")
    assert "18 of 20 subjects are not in" in err
    assert "sub-001, sub-002" in err
    ds = scalebrain.open_store(store)
    assert float(ds["brain_age_global"].sel(subject="sub-016")) == 71
    assert ds["brain_age_global"].attrs["tool_version"] == "2.1"
    table.write_text("subject,brain_age\nsub-0oo,60\nsub-001,old\n")
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "not in the store (1): sub-0oo" in err
    assert "'old' is not a finite number" in err
    assert "Traceback" not in err
    assert run(capsys, "import-ages", store, table)[0] == 2
    table.write_text("subject,brain_age,brain_pad_corrected\nsub-001,60,2\n")
    code, _, err = run(capsys, "import-ages", store, table, "--tool", "pyment")
    assert code == 1
    assert "--replace" in err
    assert run(capsys, "import-ages", store, table, "--tool", "pyment", "--replace")[0] == 0
    assert run(capsys, "import-ages", store, tmp_path / "none.tsv", "--tool", "x")[0] == 1


def test_log_of_study__is_beside_the_results_of_run_and_demo():
    assert log_of_study({"out": Path("OUT")}) == Path("OUT/log.jsonl")
    assert log_of_study({"out": Path("OUT"), "dry_run": False}) == Path("OUT/log.jsonl")
    assert log_of_study({"out": Path("OUT"), "dry_run": True}) is None


def test_log_to__takes_names_that_are_no_text_and_a_disk_that_is_full(tmp_path):
    path = tmp_path / "log.jsonl"
    with log_to(path, "scalebrain ingest r\udce9sum"):
        pass
    assert "udce9" in path.read_text()
    with log_to(Path("/dev/full"), "scalebrain ingest"):  # what is written elsewhere says so
        logging.getLogger("scalebrain").warning("kept")
