import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from scalebrain.config import StudyConfig, config_schema, default_yaml, expected, read_config
from scalebrain.errors import ConfigError
from scalebrain.graph.train import Training


def test_config_schema__is_a_schema_of_every_setting_with_its_default():
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    keys = schema["properties"]
    plain = StudyConfig()
    assert list(keys) == [field.name for field in dataclasses.fields(StudyConfig)]
    for name, key in keys.items():
        if key["type"] != "object":
            assert key["default"] == getattr(plain, name)
    training = {f.name: f.default for f in dataclasses.fields(Training)}
    assert {k: v["default"] for k, v in keys["training"]["properties"].items()} == training


def test_config_schema__bounds_are_those_of_the_training():
    bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    for name, key in config_schema()["properties"]["training"]["properties"].items():
        if key["type"] in ("integer", "number"):
            limits = [(bound, key[bound]) for bound in bounds if bound in key]
            for bound, value in limits:
                nudge = {"exclusiveMinimum": 1e-9, "exclusiveMaximum": -1e-9}.get(bound, 0)
                assert Training(**{name: value + nudge})


@pytest.mark.parametrize(
    "settings",
    [
        {"training": {"validation": 0.95}},
        {"training": {"learning_rate": 2000}},
        {"training": {"decay": 1e7}},
        {"training": {"seed": 2**32 - 1}},
        {"seed": 2**32},
        {"ages": {"table": "a.tsv", "tool": "  "}},
        {"ages": {"table": "a.tsv", "tool": "x", "tool_version": " "}},
    ],
)
def test_read_config__refuses_what_a_stage_would_refuse_later(settings):
    with pytest.raises(ConfigError, match="expected"):
        read_config(settings)


def test_default_yaml__means_the_defaults(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(default_yaml())
    config = read_config(path)
    for field in dataclasses.fields(StudyConfig):
        if field.name not in ("ingest", "training"):
            assert getattr(config, field.name) == getattr(StudyConfig(), field.name)
    assert Training(**config.training) == Training()


def test_configuration_page__has_every_key():
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    for name, key in config_schema()["properties"].items():
        inner = key.get("properties", {"": key})
        for sub, one in inner.items():
            full = f"{name}.{sub}" if sub else name
            default = f"`{json.dumps(one['default'])}`" if "default" in one else ""
            assert f"| `{full}` | {expected(one)} | {default} | {one['description']} |" in page


def test_read_config__tells_all_that_is_wrong_with_line_and_column(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("coverge: 0.9\ntraining:\n  folds: 1\n  layer: chebb\nseed: soon\n")
    with pytest.raises(ConfigError) as error:
        read_config(path)
    words = str(error.value)
    assert f"{path}:1:1: coverge: unknown key. Did you mean 'coverage'?" in words
    assert f"{path}:3:3: training.folds: expected a whole number of at least 2, found 1." in words
    assert f"{path}:4:3: training.layer" in words
    assert f"{path}:5:1: seed" in words


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1\nseed: 2\n",
        "a: &a [1]\nb: *a\n",
        "seed: !!python/object/apply:os.getcwd []\n",
        "- 1\n",
        "seed: [\n",
        "coverage: .nan\n",
        "ages: {table: a.tsv}\n",
    ],
)
def test_read_config__refuses(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        read_config(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"formula": "brain_pad_corrected ~ scale(log10(lesion_volume) + age"},
        {"formula": "brain_pad_corrected"},
        {"load_formula": "brain_pad_corrected ~ age + (1 | site)"},
        {"sem_model": "motor ~~~ x"},
        {"sem_model": "motor"},
    ],
)
def test_read_config__refuses_a_model_that_cannot_be_parsed(tmp_path, settings):
    (key,) = settings
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"seed": 1, **settings}, sort_keys=False))
    with pytest.raises(ConfigError, match=rf"study\.yaml:2:1: {key}: "):
        read_config(path)
    for source in (settings, StudyConfig(**settings)):
        with pytest.raises(ConfigError, match=f"^configuration: {key}: "):
            read_config(source)


def test_read_config__tells_every_model_that_cannot_be_parsed():
    with pytest.raises(ConfigError, match=r"2 problems") as error:
        read_config({"formula": "age ~ (sex", "sem_model": "motor ~~~ x"})
    assert "configuration: formula: " in str(error.value)
    assert "configuration: sem_model: SEM: " in str(error.value)


def test_read_config__keeps_models_that_name_what_a_store_may_have():
    config = read_config(
        {
            "formula": "brain_pad_corrected ~ scale(log10(Total.Volume)) + `my age` + (1 | cohort)",
            "load_formula": "brain_pad ~ np.sqrt(lesion_load) * handedness",
            "sem_model": "motor ~ cst + mine\nindirect := 1",
        }
    )
    assert "Total.Volume" in config.formula


def test_read_config__keeps_what_is_right(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "min_days_post_stroke": 90, "ingest": {}}))
    config = read_config(path)
    assert config.seed == 3
    assert config.min_days_post_stroke == 90.0
    assert read_config(config) is config
