"""Overrides work as typed, and a mistake is one line that names the key."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pneumonia.config.compose import compose, sweep, to_yaml
from pneumonia.errors import ConfigError


def test_the_command_of_the_readme_composes() -> None:
    config = compose(["experiment=local", "training.num_train_epochs=5", "model.learning_rate=1e-5"])
    assert config.training.num_train_epochs == 5
    assert config.model.learning_rate == 1e-5
    assert config.model.name == "pneumonia-local"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.num_train_epochs = 6  # type: ignore[misc]


def test_a_source_group_sets_the_source() -> None:
    assert compose(["data=phantom"]).data.source == "phantom"
    assert compose(["data=folder", "data.root=/x"]).data == dataclasses.replace(
        compose(["data=folder"]).data, root="/x"
    )
    assert compose().data.source is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.num_epochs=5", r"training\.num_epochs: no such key; the nearest is training\.num_train_epochs"),
        ("learning_rate=5", r"learning_rate: no such key; the nearest is model\.learning_rate"),
        ("model.learning_rate=fast", r"model\.learning_rate.*'fast'"),
        ("training.oversample=maybe", r"training\.oversample.*maybe"),
        ("split.strategy=random", r"split\.strategy=random: not one of patient, stratified, official"),
        ("experiment=locl", "experiment=locl: not one of .*local"),
        ("data=kagle", "data=kagle: not one of .*folder"),
        ("data.fraction=0", r"data\.fraction=0.*outside"),
        ("split.train=0.9", "have to add up to 1"),
        ("model.hidden_size=100", r"not a multiple of model\.num_attention_heads=3"),
        ("training.augment.noise=7", r"training\.augment\.noise=7.*outside 0\.\.0\.9"),
        ("resume", "an override is KEY=VALUE"),
        ("+training.new=1", r"training\.new: no such key|no such key"),
        ("training.num_train_epochs=[1", "could not be converted to Float"),
    ],
)
def test_a_mistake_is_one_line(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        compose([override])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["/a b/c=d", r"(person\d+)_", "it's", r"a\'b c", "back\\", "naïve/röntgen", "a,b",
                                   "[1] x", "{a}", "[", "~/x", "a;b", "$HOME", "a\tb", "#x", "x\"y",
                                   "(", "!x"])  # fmt: skip
def test_paths_and_patterns_work_as_typed(value: str) -> None:
    assert compose([f"data.root={value}"]).data.root == value


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:8080", "https://u@mlflow.example/base", "http://[::1]:80", "sqlite:////srv/m.db",
            "postgresql+psycopg2://u@db/m", "databricks"]
)  # fmt: skip
def test_addresses_that_mlflow_takes_pass(uri: str) -> None:
    assert compose([f"tracking.uri={uri}"]).tracking.uri == uri


@pytest.mark.parametrize("uri", ["loca", "./mlruns", "file:///srv/mlruns", "htp://host:80", "http://", "http://a:b:1"])
def test_an_address_that_mlflow_does_not_take_is_a_mistake_of_configuration(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"no address that MLflow takes; expected local, null, http://") as caught:
        compose([f"tracking.uri={uri}"])
    assert "\n" not in str(caught.value)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["tracking.uri=htp://me:secret@host"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["https://me:secret@mlflow.example/base", "postgresql://me:secret@db/mlflow", "mysql+pymysql://u:secret@h/d"]
)
def test_a_password_belongs_into_the_environment(uri: str) -> None:
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as caught:
        compose([f"tracking.uri={uri}"])
    assert "secret" not in str(caught.value)
    named = re.sub(":secret", "", uri)
    assert compose([f"tracking.uri={named}"]).tracking.uri == named


def test_null_stays_null() -> None:
    assert compose(["tracking.uri=null"]).tracking.uri is None


def test_a_sweep_is_every_combination_in_order() -> None:
    runs = sweep(["model.learning_rate=1e-4,1e-3", "training.seed=1,2", "experiment=smoke"])
    rates = [(compose(run).model.learning_rate, compose(run).training.seed) for run in runs]
    assert rates == [(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)]


def test_the_stored_configuration_reads_back_to_the_same_values() -> None:
    from omegaconf import OmegaConf

    config = compose(["experiment=smoke", "data=phantom", "model.learning_rate=2e-5"])
    raw = OmegaConf.create(to_yaml(config))
    assert OmegaConf.to_container(raw) == config.to_json()
