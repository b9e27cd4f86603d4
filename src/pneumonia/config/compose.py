"""Overrides to a checked Config: the only place that imports Hydra."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pneumonia.config.schema import Config
from pneumonia.errors import ConfigError, DependencyMissing, PneumoniaError

_CONF = Path(__file__).parent / "conf"
GROUPS = ("data", "experiment")


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (_CONF / group).glob("*.yaml"))


def _keys(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key that can be set, dotted."""
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if dataclasses.is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


_LISTS = ("split.hold_out", "model.stem_blocks")
"""Keys whose values are lists; elsewhere a bracket is a part of a name."""


def _quote(override: str) -> str:
    """Quote a value that Hydra's grammar would stumble over, so that paths and patterns work as typed."""
    name, _, value = override.partition("=")
    if name in GROUPS or re.fullmatch(r"[a-zA-Z0-9_./:@%+-]*|'.*'|\".*\"", value):
        return override
    if name in _LISTS and value.startswith("["):
        return override
    return f"{name}={_quoted(value)}"


def _quoted(text: str) -> str:
    """Any text as a quoted string of Hydra's grammar."""
    escaped = re.sub(r"(\\*)(')", r"\1\1\\\2", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`; the last part of a key weighs as much as the whole."""
    known = list(known)

    def likeness(candidate: str) -> float:
        tail = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return tail + difflib.SequenceMatcher(None, name, candidate).ratio()

    return max(known, key=likeness)


def _check_names(overrides: Sequence[str]) -> None:
    """Refuse an override that is no assignment, names no key or names no choice of a group, before Hydra sees it."""
    keys = [*_keys(), *GROUPS]
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override}: an override is KEY=VALUE, such as training.num_train_epochs=5")
        if name.lstrip("+~") != name or name not in keys:
            raise ConfigError(f"{name}: no such key; the nearest is {_nearest(name.lstrip('+~'), keys)}")
        if "${" in value:
            raise ConfigError(f"{name}: a value with ${{ would be looked up in the environment; write it out")
        if name in GROUPS and not set(value.split(",")) <= set(_choices(name)):
            raise ConfigError(f"{override}: not one of {', '.join(_choices(name))}")


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose the packaged configuration with `overrides`, such as ["experiment=local", "data.root=/x"].

    Raises ConfigError, one line naming the key, for an unknown key or choice, a wrong type or a value out of range.
    """
    try:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.config_store import ConfigStore
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[train]'") from error
    _check_names(overrides)
    schema = OmegaConf.structured(Config)
    _unlock(schema)
    ConfigStore.instance().store(name="schema", node=schema)
    try:
        with initialize_config_dir(str(_CONF), version_base="1.3"):
            node = hydra_compose("config", overrides=[_quote(override) for override in overrides])
        value = OmegaConf.to_object(node)
    except (HydraException, OmegaConfBaseException) as error:
        # Our own checks run inside OmegaConf's conversion, which may wrap what they raise.
        if ours := _cause(error):
            raise ours from error
        raise ConfigError(_one_line(error)) from error
    assert isinstance(value, Config)
    return _with_source(value)


def _with_source(config: Config) -> Config:
    """A folder of images says that they come from a folder; without it, what lay prepared would be used in silence."""
    if config.data.source is not None:
        return config
    if config.data.root is not None:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, source="folder"))
    if config.data.labels is not None:
        raise ConfigError("data.labels= needs data.root=<folder of the images>")
    return config


def _unlock(node: Any) -> None:
    """Frozen dataclasses become read-only nodes; composing has to write them before they are frozen again."""
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _unlock(child)


def _cause(error: BaseException | None) -> PneumoniaError | None:
    while error is not None:
        if isinstance(error, PneumoniaError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _one_line(error: BaseException) -> str:
    """Hydra's message with its cause, without the structure dump."""
    parts = [str(error)]
    if error.__cause__ is not None:
        parts.append(str(error.__cause__))
    text = " ".join(line.strip() for part in parts for line in part.splitlines())
    key = re.search(r"full_key: (\S+)", text)
    text = re.sub(r"\s*(full_key: \S+|object_type=\S+|reference_type=\S+)", "", text)
    return f"{key.group(1)}: {text}" if key else text


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Comma lists and ranges of Hydra's sweep syntax to one list of overrides a run, in Hydra's order.

    ["model.learning_rate=1e-4,1e-3"] -> [["model.learning_rate=0.0001"], ["model.learning_rate=0.001"]]
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    _check_names(overrides)
    parsed = [_parse(override) for override in overrides]
    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"{_one_line(error)}; give the values one by one, as KEY=a,b,c") from error
    return [list(run) for batch in batches for run in batch]


def _parse(override: str) -> Any:
    """One override of a sweep, its values quoted where Hydra's grammar would stumble over them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        return parser.parse_override(override)
    except HydraException:
        name, _, value = override.partition("=")
        pieces = value.split(",")
        if not all(piece.strip() for piece in pieces):
            raise ConfigError(f"{override}: a value between commas is empty; give KEY=a,b,c") from None
    try:
        return parser.parse_override(f"{name}={','.join(_quote(f'{name}={one}').partition('=')[2] for one in pieces)}")
    except HydraException as error:
        raise ConfigError(f"{override}: {_one_line(error)}") from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, which `load` reads back to the same values."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def load(path: Path) -> Config:
    """The configuration that `to_yaml` wrote to a file; nothing of it is composed anew.

    Raises ConfigError where the file is missing, damaged or of another version's keys.
    """
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as error:
        raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[train]'") from error
    schema = OmegaConf.structured(Config)
    _unlock(schema)
    try:
        value = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError, ValueError) as error:
        if ours := _cause(error):
            raise ours from error
        raise ConfigError(f"{path}: no settings of this version ({_one_line(error)}); run `fetch` again") from error
    assert isinstance(value, Config)
    return value


def changed(config: Config) -> list[str]:
    """What `config` sets otherwise than `compose` does by itself, as overrides that make the same of it again."""
    defaults = dict(_flat(compose().to_json()))
    return [f"{key}={_written(value)}" for key, value in _flat(config.to_json()) if value != defaults[key]]


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def _written(value: Any) -> str:
    """A value in Hydra's grammar; text is always quoted, so that "null" and "1" stay text."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
