"""Finds plugins by entry point, loads each on its own, and keeps every failure as data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

import pluggy

from xattn import backend as api
from xattn.backend import API_VERSION, ENTRY_POINT_GROUP, Backend
from xattn.capabilities import Capabilities
from xattn.request import Request

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass
class Plugin:
    """One entry point: where it came from, what it brought, what went wrong."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    backends: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A registered backend."""

    backend: Backend
    plugin: str
    disabled_by: str | None = None

    @property
    def name(self) -> str:
        return self.backend.name


class Registry:
    """The backends of this process, in order of registration, and the plugins they came from."""

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self.plugins: list[Plugin] = []
        self.entries: dict[str, Entry] = {}
        self.disabled = tuple(disabled)
        self._manager = pluggy.PluginManager("xattn")
        self._manager.add_hookspecs(api)

    def load(self, found: Iterable[EntryPoint]) -> None:
        # xattn's own plugins first: a stranger cannot take their names.
        for entry_point in sorted(found, key=lambda e: (_distribution(e) != "xattn", _distribution(e), e.name)):
            self._load(entry_point)

    def _load(self, entry_point: EntryPoint) -> None:
        version = entry_point.dist.version if entry_point.dist is not None else ""
        plugin = Plugin(entry_point.name, entry_point.value, _distribution(entry_point), version)
        if any(other.name == plugin.name for other in self.plugins):
            plugin.failures.append(f'another plugin is already called "{plugin.name}"')
            self.plugins.append(plugin)
            return
        self.plugins.append(plugin)
        # A stranger's code runs here: whatever it raises is reported in info() and explain(), and stops nobody else.
        try:
            self._manager.register(entry_point.load(), name=plugin.name)
        except (Exception, SystemExit) as error:
            plugin.failures.append(f"{type(error).__name__}: {error}")
            return
        hooks = [hook for hook in self._manager.hook.xattn_backends.get_hookimpls() if hook.plugin_name == plugin.name]
        if not hooks:
            plugin.failures.append(f"{plugin.module} implements no xattn_backends hook (is @xattn.hookimpl missing?)")
        for hook in hooks:
            try:
                candidates = list(hook.function())
            except (Exception, SystemExit) as error:
                plugin.failures.append(f"xattn_backends() raised {type(error).__name__}: {error}")
                continue
            for candidate in candidates:
                self._add(candidate, plugin)

    def _add(self, candidate: object, plugin: Plugin) -> None:
        if not isinstance(candidate, Backend):
            plugin.failures.append(f"xattn_backends() returned {candidate!r:.80}, which is no xattn.Backend")
            return
        problem = self._problem(candidate, plugin)
        if problem is not None:
            plugin.failures.append(f"backend {getattr(candidate, 'name', type(candidate).__name__)!r}: {problem}")
            return
        disabled_by = next((name for name in (candidate.name, plugin.name) if name in self.disabled), None)
        source = None if disabled_by is None else f"XATTN_DISABLE={disabled_by}"
        self.entries[candidate.name] = Entry(candidate, plugin.name, source)
        plugin.backends.append(candidate.name)

    def _problem(self, candidate: Backend, plugin: Plugin) -> str | None:
        version = getattr(candidate, "api_version", None)
        if version != API_VERSION:
            return f"written for plugin API {version}, this xattn has {API_VERSION}; update {plugin.distribution}"
        name = getattr(candidate, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "auto":
            return f"{name!r} is no name: lower-case letters, digits, - and _, and not auto"
        if name in self.entries:
            return f'the plugin "{self.entries[name].plugin}" already has a backend of this name'
        if any(other.name == name and other is not plugin for other in self.plugins):
            return "a plugin has this name"
        blocks = getattr(candidate, "capabilities", None)
        if not isinstance(blocks, tuple) or not all(isinstance(block, Capabilities) for block in blocks):
            return "capabilities is no tuple of xattn.Capabilities"
        return None

    def names(self, name: str) -> list[str]:
        """The backends that a name stands for: a backend's own, or all of a plugin's."""
        if name in self.entries:
            return [name]
        return [entry.name for entry in self.entries.values() if entry.plugin == name]

    def ordered(self, request: Request) -> list[Entry]:
        """Entries in the order in which `auto` tries them: by declared priority, then by registration."""

        def rank(entry: Entry) -> int:
            block = entry.backend.block(request)
            return -1 if block is None else block.rank(request)

        return sorted(self.entries.values(), key=rank, reverse=True)


def _distribution(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else ""


def split_names(value: str) -> tuple[str, ...]:
    """The comma-separated names of an environment variable."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


_registry: Registry | None = None


def registry() -> Registry:
    """The registry of this process, loaded on first use: `import xattn` imports no plugin."""
    global _registry
    if _registry is None:
        loading = Registry(split_names(os.environ.get("XATTN_DISABLE", "")))
        loading.load(entry_points(group=ENTRY_POINT_GROUP))
        _registry = loading
    return _registry
