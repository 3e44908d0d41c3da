import json
import logging
import re
from itertools import product

import pytest

import scalebrain
from scalebrain import cli
from tests.phantom import write_tree


@pytest.fixture(autouse=True)
def _logging():
    yield
    logging.getLogger("scalebrain").propagate = True


def run(capsys, main, *arguments):
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def bids_tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("app") / "bids")


def test_bids_app__takes_participants_and_adds_others_later(capsys, bids_tree, tmp_path):
    out = tmp_path / "out"
    threads = ("--scheduler", "threads")
    first = (bids_tree, out, "participant", "--participant-label", "sub-001", "002", *threads)
    code, told, err = run(capsys, cli.bids_main, *first)
    assert code == 0, err
    assert told.strip() == str(out / "cohort.zarr")
    store = scalebrain.open_store(out / "cohort.zarr")
    assert store["subject"].values.tolist() == ["sub-001", "sub-002"]
    second = (bids_tree, out, "participant", "--participant-label", "003", *threads)
    assert run(capsys, cli.bids_main, *second)[0] == 0
    store = scalebrain.open_store(out / "cohort.zarr")
    assert sorted(store["subject"].values.tolist()) == ["sub-001", "sub-002", "sub-003"]
    assert "node_features" in store
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)


def test_bids_app__a_label_that_nobody_has_leaves_a_finished_level(capsys, bids_tree, tmp_path):
    call, threads = (bids_tree, tmp_path / "out", "participant"), ("--scheduler", "threads")
    assert run(capsys, cli.bids_main, *call, *threads)[0] == 0
    records = {path: path.read_bytes() for path in (tmp_path / "out" / "stages").iterdir()}
    code, _, err = run(capsys, cli.bids_main, *call, "--participant-label", "zzz", *threads)
    assert code == 1
    assert "'zzz' is not in the dataset" in err
    assert {path: path.read_bytes() for path in records} == records
    plan = (bids_tree, tmp_path / "out", "group", "--dry-run", *threads)
    assert run(capsys, cli.bids_main, *plan)[0] == 0


@pytest.fixture(scope="module")
def two_sessions(tmp_path_factory):
    """Sessions 1 and 2 of everyone; sub-000 has no second one."""
    tree = write_tree(tmp_path_factory.mktemp("sessions") / "bids", n=4)
    for folder in sorted(tree.glob("sub-*")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        for session in ("1", "2") if folder.name != "sub-000" else ("1",):
            for path in files:
                name = path.name.replace(folder.name, f"{folder.name}_ses-{session}")
                new = folder / f"ses-{session}" / "anat" / name
                new.parent.mkdir(parents=True, exist_ok=True)
                new.write_bytes(path.read_bytes())
        for path in files:
            path.unlink()
    return tree


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (("001", "1"), ("000", None), {"sub-000": "ses-1", "sub-001": "ses-1"}),
        (("000", "1"), ("001", "2"), {"sub-000": "ses-1", "sub-001": "ses-2"}),
        (
            ("001", "all"),
            ("000", "1"),
            {"sub-000": "ses-1", "sub-001_ses-1": "ses-1", "sub-001_ses-2": "ses-2"},
        ),
    ],
)
def test_bids_app__others_keep_their_session(
    capsys, two_sessions, tmp_path, first, second, expected
):
    out = tmp_path / "out"
    for label, session in (first, second, second):
        more = ("--session-label", session) if session else ()
        call = (two_sessions, out, "participant", "--participant-label", label, *more)
        code, _, err = run(capsys, cli.bids_main, *call, "--scheduler", "threads")
        assert code == 0, err
    assert "nothing to do" in err
    store = scalebrain.open_store(out / "cohort.zarr")
    subjects, sessions = store["subject"].values.tolist(), store["session"].values.tolist()
    assert dict(zip(subjects, sessions, strict=True)) == expected
    assert store["scan_present"].values.all()
    assert scalebrain.problems(out / "cohort.zarr").empty


def test_bids_app__dry_run_writes_nothing(capsys, bids_tree, tmp_path):
    out = tmp_path / "out"
    code, told, _ = run(capsys, cli.bids_main, bids_tree, out, "participant", "--dry-run")
    assert code == 0
    assert "1/2 ingest: would run" in told
    assert "nothing was written" in told
    assert not out.exists()


@pytest.mark.parametrize(
    "labels", [("001", "002"), ("001,002",), ("001,", "002"), ("sub-001, sub-002",)]
)
def test_bids_app__labels_are_separated_by_spaces_or_commas(capsys, bids_tree, tmp_path, labels):
    call = (bids_tree, tmp_path / "out", "participant", "--participant_label", *labels)
    code, told, err = run(capsys, cli.bids_main, *call, "--dry-run")
    assert code == 0, err
    assert "scans: 2, 2 of them new" in told


@pytest.mark.parametrize(
    ("level", "more", "code", "words"),
    [
        ("participant", ("--participant-label", "0O1"), 1, "'0O1' is not in the dataset"),
        ("participant", ("--participant-label", ","), 1, "'' is not in the dataset"),
        ("group", (), 1, "participant"),
        ("group", ("--participant-label", "001"), 2, "everyone in the store"),
        ("session", (), 2, "participant"),
        ("participant", ("--memory", "much"), 1, "much"),
        ("participant", ("--n-workers", "0"), 2, "--n-workers"),
        ("participant", ("--config", "none.yaml"), 2, "none.yaml"),
        ("participant", ("--scheduler", "spark"), 1, "threads"),
    ],
)
def test_bids_app__mistakes_are_one_line(capsys, bids_tree, tmp_path, level, more, code, words):
    ended, _, err = run(capsys, cli.bids_main, bids_tree, tmp_path / "out", level, *more)
    assert ended == code
    assert words in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("features", "missing.zarr"),
        ("train", "missing.zarr", "model"),
        ("predict", "missing.zarr", "."),
        ("motor", "missing.zarr", "out"),
        ("person", "missing.zarr", "sub-001", "out"),
        ("export", "missing.zarr", "out"),
        ("store", "info", "missing.zarr"),
        ("store", "verify", "missing.zarr"),
        ("store", "withdraw", "missing.zarr", "sub-001"),
        ("import-ages", "missing.zarr", "ages.tsv", "--tool", "x"),
        ("site-summary", "missing.zarr", "out.json"),
        ("meta", "missing.json"),
        ("ingest", "missing", "c.zarr"),
        ("run", "missing", "out"),
        ("ingst",),
        ("simulate", "file.txt/out"),
    ],
)
def test_main__mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("no folder")
    plain = ("store", "meta", "export", "ingst", "import-ages", "site-summary")
    threads = () if arguments[0] in plain else ("--scheduler", "threads")
    code, _, err = run(capsys, cli.main, *arguments, *threads)
    assert code in (1, 2)
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_main__completes_commands(monkeypatch, capsys):
    from click.shell_completion import BashComplete

    found = BashComplete(cli.cli, {}, "scalebrain", "_X").get_completions([], "ing")
    assert [item.value for item in found] == ["ingest"]


@pytest.mark.parametrize(
    ("main", "variable", "words", "expected"),
    [
        (cli.main, "_SCALEBRAIN_COMPLETE", "scalebrain ing", "plain,ingest\n"),
        (
            cli.bids_main,
            "_SCALEBRAIN_BIDS_COMPLETE",
            "scalebrain-bids data out par",
            "plain,participant\n",
        ),
    ],
)
def test_main__completes_in_the_shell(monkeypatch, capsys, main, variable, words, expected):
    monkeypatch.setenv(variable, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    code, told, _ = run(capsys, main)
    assert code == 0
    assert told == expected


def test_docs__set_up_the_completion_of_both_programs(monkeypatch, capsys, repository):
    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    found = re.findall(r"(_\w+_COMPLETE)=(\w+_source) (scalebrain\S*?)[)\s]", page)
    shells = ("bash_source", "zsh_source", "fish_source")
    mains = {"scalebrain": cli.main, "scalebrain-bids": cli.bids_main}
    assert {(shell, program) for _, shell, program in found} == set(product(shells, mains))
    for variable, shell, program in found:
        with monkeypatch.context() as patch:
            patch.setenv(variable, shell)
            code, told, _ = run(capsys, mains[program])
        assert code == 0
        assert f"{variable}={shell.replace('source', 'complete')}" in told
        assert program in told


def test_redact__blanks_out_what_is_secret():
    from scalebrain.cli.logfile import redact

    shown = redact("s3://key:word@host/a?X-Amz-Signature=abcdef and more")
    assert "word" not in shown.replace("more", "")
    assert "abcdef" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password='hunter2', n=3", "password='***', n=3"),
        ('{"access_token": "abc123", "n": 3}', '{"access_token": "***", "n": 3}'),
        (r'"{\"access_token\": \"abc123\", \"n\": 3}"', r'"{\"access_token\": \"***\", \"n\": 3}"'),
        ("{'aws_secret_access_key': 'abc123'}", "{'aws_secret_access_key': '***'}"),
        ('secret_access_key: Some("abc"), region: x', 'secret_access_key: Some("***"), region: x'),
        (r'{"password": "a\"bc", "n": 3}', '{"password": "***", "n": 3}'),
        ('{"private_key": "-----BEGIN\nabc", "n": 3}', '{"private_key": "***", "n": 3}'),
        ("password=b'abc'.", "password=b'***'."),
        ("password=it's, then", "password=***, then"),
        ("password: 'never closed\nabc", "password: '***"),
        ("Authorization: Bearer eyJhbc next", "Authorization: *** next"),
        ("Authorization: Negotiate eyJhbc next", "Authorization: *** next"),
        ("{'Authorization': 'Basic eyJhbc'}", "{'Authorization': '***'}"),
        ("token=abc&n=3", "token=***&n=3"),
        ("the token is invalid: expired", "the token is invalid: expired"),
    ],
)
def test_redact__blanks_out_values_named_as_secrets(text, expected):
    from scalebrain.cli.logfile import redact

    assert redact(text) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/users/a@site/cohort.zarr", "s3://bucket/users/a@site/cohort.zarr"),
        ("http://host:8787/users/a@site", "http://host:8787/users/a@site"),
        ("https://[::1]:8787/a@b", "https://[::1]:8787/a@b"),
        ("https://host/a?mail=a@b", "https://host/a?***"),
        ("https://user@host/users/a@site", "https://***@host/users/a@site"),
        ("s3://key:wo/rd@bucket/a", "s3://***@bucket/a"),
        ("s3://key:123@bucket/a", "s3://***@bucket/a"),
        ("s3://key:123/wo@bucket/a", "s3://***@bucket/a"),
        ("s3://bucket/a,s3://key:word@other/b", "s3://bucket/a,s3://***@other/b"),
        ("simplecache::s3://key:word@bucket/a", "simplecache::s3://***@bucket/a"),
    ],
)
def test_redact__takes_for_users_of_urls_what_stands_before_the_host(url, expected):
    from scalebrain.cli.logfile import redact

    assert redact(f"'{url}': damaged") == f"'{expected}': damaged"
