"""What a study remembers of its ingest, and what its dry run tells before anything is written."""

import re
import shutil

import pytest

import scalebrain
from scalebrain import pipeline
from scalebrain.errors import ConfigError, StoreError, TableError
from scalebrain.ingestion import cohort
from scalebrain.study import check_names, read_record, record_of, told_settings
from tests.phantom import image_path, write_tree

MADE = {"ingest": {"resolution": 5}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset of six, and the level participant of it at 5 mm, without features."""
    folder = tmp_path_factory.mktemp("records")
    tree = write_tree(folder / "bids", n=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_features", lambda _: None)
        scalebrain.run_study(tree, folder / "out", MADE, level="participant")
    return folder


@pytest.fixture
def made(whole, tmp_path, monkeypatch):
    """Copies of both, to be changed."""
    monkeypatch.setattr(pipeline, "_features", lambda _: None)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bids", tmp_path / "out"


def held_to(tree, out):
    """Whether the settings that the store was made with are asked for still."""
    with pytest.raises(StoreError, match=r"was made at 5 mm, and ingest\.resolution is null"):
        scalebrain.run_study(tree, out, {}, level="participant")


def group(tree, out):
    return pipeline._open_study(tree, out, {}, None, "group", ())


def test_run_study__another_dataset_is_refused_before_anything_is_taken_back(made, tmp_path):
    tree, out = made
    record = (out / "stages" / "ingest.json").read_bytes()
    other = tree.rename(tmp_path / "other")
    for call in (scalebrain.run_study, pipeline.preview_study):
        with pytest.raises(StoreError, match="holds bids, not 'other'"):
            call(other, out, MADE, level="participant")
    assert (out / "stages" / "ingest.json").read_bytes() == record
    held_to(other.rename(tree), out)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, StoreError])
def test_run_study__stopped_before_the_store_changes_leaves_a_finished_level(
    made, monkeypatch, stop
):
    tree, out = made

    def stops(*_args):
        raise stop("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "check_ids", stops)
        with pytest.raises(stop, match="stopped"):
            scalebrain.run_study(tree, out, MADE, level="participant")
    assert told_settings(group(tree, out))["ingest"] == {"resolution": 5.0}
    held_to(tree, out)


def test_run_study__stopped_while_the_store_changes_keeps_its_settings_alone(made, monkeypatch):
    tree, out = made
    image = image_path(tree, "sub-001", "desc-preproc_T1w")
    image.write_bytes(image_path(tree, "sub-002", "desc-preproc_T1w").read_bytes())

    def stops(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "write_arrays", stops)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.run_study(tree, out, MADE, level="participant")
    with pytest.raises(StoreError, match="no finished store"):
        group(tree, out)
    held_to(tree, out)
    scalebrain.run_study(tree, out, MADE, level="participant")
    assert told_settings(group(tree, out))["ingest"] == {"resolution": 5.0}


def test_run_study__a_first_ingest_that_was_stopped_is_held_to_its_grid(
    whole, tmp_path, monkeypatch
):
    def stops(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_features", lambda _: None)
    for name, stage in (("early", "check_ids"), ("late", "_write_partitions")):
        with monkeypatch.context() as patch:
            patch.setattr(cohort, stage, stops)
            with pytest.raises(KeyboardInterrupt):
                scalebrain.run_study(whole / "bids", tmp_path / name, MADE, level="participant")
    held_to(whole / "bids", tmp_path / "late")
    scalebrain.run_study(whole / "bids", tmp_path / "early", {}, level="participant")
    record = record_of(group(whole / "bids", tmp_path / "early"), "ingest")
    assert read_record(record)["settings"] == {}


def test_preview_study__someone_who_is_gone_is_told_as_the_run_tells_it(made):
    tree, out = made
    shutil.rmtree(tree / "sub-001")
    table = tree / "participants.tsv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith("sub-001")))
    told = set()
    for call in (pipeline.preview_study, scalebrain.run_study):
        with pytest.raises(TableError, match="sub-001 is in the store but no longer") as error:
            call(tree, out, MADE, level="participant")
        told.add(str(error.value))
    assert len(told) == 1


def test_preview_study__another_dataset_of_the_same_name_is_told_as_the_run_tells_it(made):
    tree, out = made
    images = sorted(tree.rglob("*_T1w.nii.gz"))
    contents = [image.read_bytes() for image in images]
    for image, content in zip(images, contents[1:] + contents[:1], strict=True):
        image.write_bytes(content)
    told = set()
    for call in (pipeline.preview_study, scalebrain.run_study):
        with pytest.raises(StoreError, match="Every scan of 'bids' differs") as error:
            call(tree, out, MADE, level="participant")
        told.add(str(error.value))
    assert len(told) == 1


def test_preview_study__people_who_withdrew_and_are_held_are_told_as_the_run_tells_it(made):
    tree, out = made
    (tree.parent / "gone").write_text("sub-001\n")
    asked = {"ingest": {"resolution": 5, "withdrawn": str(tree.parent / "gone")}}
    told = set()
    for call in (pipeline.preview_study, scalebrain.run_study):
        with pytest.raises(StoreError, match="sub-001 withdrew, and is in the store") as error:
            call(tree, out, asked, level="participant")
        told.add(str(error.value))
    assert len(told) == 1


@pytest.mark.parametrize("level", ["all", "group"])
def test_run_study__a_taken_place_of_the_export_is_told_before_anything_runs(made, level):
    tree, out = made
    (out / "derivatives").mkdir()
    (out / "derivatives" / "participants.tsv").write_text("participant_id\nsub-theirs\n")
    record = (out / "stages" / "ingest.json").read_bytes()
    for call in (pipeline.preview_study, scalebrain.run_study):
        with pytest.raises(ConfigError) as error:
            call(tree, out, MADE, level=level)
        assert str(error.value) == (
            f"{out}: a study puts its export into {out / 'derivatives'}, which is not empty and "
            "holds no export of scalebrain. Give a new folder for results."
        )
    assert (out / "stages" / "ingest.json").read_bytes() == record
    pipeline.preview_study(tree, out, MADE, level="participant")  # which exports nothing


def test_run_study__names_that_nothing_makes_stop_before_the_training(made, monkeypatch):
    monkeypatch.setattr(pipeline, "train_model", lambda *_, **__: pytest.fail("trained"))
    asked = {
        "formula": "brain_pad_corrected ~ scale(lesion_volum) + age",
        "load_formula": "brain_pad_corrected ~ lesion_load + handedness",
        "sem_model": "motor ~ cst + nosuch\nipsi ~ age",
    }
    study = pipeline._open_study(*made, asked, None, "group", ())
    for stage in (pipeline._train, pipeline._statistics):
        with pytest.raises(ConfigError) as error:
            stage(study)
        words = str(error.value)
        assert "(3 problems)" in words
        assert "formula: Formula 'brain_pad_corrected ~ scale(lesion_volum) + age': " in words
        assert "'lesion_volum' is neither a variable of the Dataset nor a function" in words
        assert "load_formula: " in words
        assert "'handedness' is neither" in words
        assert "sem_model: 'nosuch' is not a variable of the store, nor one of motor, cst" in words


def test_check_names__takes_what_is_made_later_or_what_this_cohort_lacks(made):
    asked = {
        "formula": "brain_pad_corrected ~ scale(log10(lesion_volume)) + template_overlap",
        "load_formula": "brain_pad ~ scale(lesion_load) + C(motor_scale) + (1 + age | cohort)",
        "sem_model": "motor ~ cst + ipsi + motor_score\nbrain_age_global ~ cst",
    }
    check_names(pipeline._open_study(*made, asked, None, "group", ()))


def test_run_study__a_table_that_is_not_there_is_told_with_where_it_was_looked_for(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    place = re.escape(f" in {tmp_path}, where relative paths start. Give the table of")
    for asked in ({"ages": {"table": "x.tsv", "tool": "y"}}, {"qc_decisions": "x.tsv"}):
        with pytest.raises(ConfigError, match=rf"^x\.tsv: no such file{place}"):
            pipeline.preview_study(tmp_path, tmp_path / "out", asked)
    with pytest.raises(ConfigError, match=r"x\.tsv: no such file\. Give the table of decisions"):
        pipeline.preview_study(tmp_path, tmp_path, {"qc_decisions": str(tmp_path / "x.tsv")})
