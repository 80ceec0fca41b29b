"""Finds plugins by entry point, loads each on its own, and keeps every failure as data."""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from xattn.dispatch.failures import is_plugins, raised
from xattn.plugin import backend as api
from xattn.plugin.backend import API_VERSION, ENTRY_POINT_GROUP, Backend, Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.constant import traced_as_constant
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Request

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_NO_NAME = "is no legal one: lower-case letters, digits, - and _, and not auto"


@dataclass
class Plugin:
    """One entry point: where it came from, what it brought, what went wrong."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    backends: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, repr=False, eq=False)
class Entry:
    """A registered backend. only: of its kernels those of this name."""

    backend: Backend
    plugin: str
    disabled_by: str | None = None
    only: str = ""

    @property
    def name(self) -> str:
        return f"{self.backend.name}.{self.only}" if self.only else self.backend.name

    @property
    def every_kernel(self) -> list[Kernel[Any]]:
        return [kernel for kernel in self.backend.kernels if self.only in ("", kernel.name)]

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops that the backend has."""
        return tuple(dict.fromkeys(kernel.op for kernel in self.every_kernel))

    def kernels(self, op: str) -> list[Kernel[Any]]:
        return [kernel for kernel in self.every_kernel if kernel.op == op]


class Registry:
    """The backends of this process, in order of registration, and the plugins they came from.

    vocabularies: of the ops that there are; what a backend declares is checked against them.
    """

    def __init__(self, vocabularies: Iterable[Vocabulary], disabled: Iterable[str] = ()) -> None:
        self.vocabularies = {vocabulary.op: vocabulary for vocabulary in vocabularies}
        self.plugins: list[Plugin] = []
        self.entries: dict[str, Entry] = {}
        self.disabled = tuple(disabled)
        self._manager = pluggy.PluginManager("xattn")
        self._manager.add_hookspecs(api)

    def load(self, found: Iterable[EntryPoint]) -> None:
        # xattn's own plugins first: a stranger cannot take their names.
        origins = [(entry_point, *_origin(entry_point)) for entry_point in found]
        for entry_point, distribution, version in sorted(origins, key=lambda o: (o[1] != "xattn", o[1], o[0].name)):
            plugin = Plugin(entry_point.name, entry_point.value, distribution, version)
            problem = self._plugin_problem(plugin)
            self.plugins.append(plugin)
            if problem is not None:
                plugin.failures.append(problem)
                continue
            # A stranger's code: whatever it raises is reported in info() and explain(), and stops nobody else.
            try:
                self._manager.register(entry_point.load(), name=plugin.name)
            except BaseException as error:
                if not is_plugins(error):
                    raise
                plugin.failures.append(f"failed to load: {raised(error)}")
                continue
            try:
                self._collect(plugin)
            except BaseException as error:
                if not is_plugins(error):
                    raise
                plugin.failures.append(f"xattn_backends() raised {raised(error)}")

    def _collect(self, plugin: Plugin) -> None:
        hooks = [hook for hook in self._manager.hook.xattn_backends.get_hookimpls() if hook.plugin_name == plugin.name]
        if not hooks:
            plugin.failures.append(f"{plugin.module} implements no xattn_backends hook (is @xattn.hookimpl missing?)")
        for hook in hooks:
            found = hook.function()
            if isinstance(found, str) or not isinstance(found, Iterable):
                plugin.failures.append(f"xattn_backends() returned {found!r:.80}, want a list of xattn.Backend")
                continue
            for candidate in found:
                self._add(candidate, plugin)

    @functools.cached_property
    def tables(self) -> list[tuple[Plugin, Path]]:
        """The files of measured times that plugins ship."""
        found: list[tuple[Plugin, Path]] = []
        for hook in self._manager.hook.xattn_tables.get_hookimpls():
            plugin = next(plugin for plugin in self.plugins if plugin.name == hook.plugin_name)
            try:
                paths = hook.function()
                if isinstance(paths, str) or not isinstance(paths, Iterable):
                    plugin.failures.append(f"xattn_tables() returned {paths!r:.80}, want a list of paths")
                else:
                    found += [(plugin, Path(path)) for path in paths]
            except BaseException as error:
                if not is_plugins(error):
                    raise
                plugin.failures.append(f"xattn_tables() raised {raised(error)}")
        return found

    def _add(self, candidate: object, plugin: Plugin) -> None:
        if not isinstance(candidate, Backend):
            hint = "; return an instance of it" if isinstance(candidate, type) else ""
            plugin.failures.append(f"xattn_backends() returned {candidate!r:.80}, which is no xattn.Backend{hint}")
            return
        problem = self._backend_problem(candidate, plugin)
        if problem is not None:
            plugin.failures.append(f"backend {getattr(candidate, 'name', type(candidate).__name__)!r}: {problem}")
            return
        disabled_by = next((name for name in (candidate.name, plugin.name) if name in self.disabled), None)
        source = None if disabled_by is None else f"XATTN_DISABLE={disabled_by}"
        self.entries[candidate.name] = Entry(candidate, plugin.name, source)
        plugin.backends.append(candidate.name)

    def _plugin_problem(self, plugin: Plugin) -> str | None:
        if not _is_name(plugin.name):
            return f"the entry point's name {_NO_NAME}"
        if any(other.name == plugin.name for other in self.plugins):
            return f'another plugin is already called "{plugin.name}"'
        if plugin.name in self.entries:
            return f'the plugin "{self.entries[plugin.name].plugin}" already has a backend called "{plugin.name}"'
        return None

    def _backend_problem(self, candidate: Backend, plugin: Plugin) -> str | None:
        version = getattr(candidate, "api_version", None)
        if version is None:
            return f"sets no api_version; this xattn has plugin API {API_VERSION}"
        if version != API_VERSION:
            return f"written for plugin API {version}, this xattn has {API_VERSION}; update the older of the two"
        name = getattr(candidate, "name", None)
        if not _is_name(name):
            return f"its name {_NO_NAME}"
        if name in self.entries:
            return f'the plugin "{self.entries[name].plugin}" already has a backend of this name'
        if any(other.name == name and other is not plugin for other in self.plugins):
            return "another plugin has this name"
        kernels = getattr(candidate, "kernels", None)
        if not isinstance(kernels, tuple) or not kernels or not all(isinstance(each, Kernel) for each in kernels):
            return "kernels is no tuple of instances of xattn.Kernel"
        packages = candidate.packages
        if not isinstance(packages, tuple) or not all(isinstance(each, str) for each in packages):
            return "packages is no tuple of names of distributions"
        return next(filter(None, map(self._kernel_problem, kernels)), None)

    def _kernel_problem(self, kernel: Kernel[Any]) -> str | None:
        name = type(kernel).__name__
        op = getattr(kernel, "op", None)
        if op not in self.vocabularies:
            return f"{name} is of the op {op!r}; there are: {', '.join(self.vocabularies)}"
        if kernel.name and not _is_name(kernel.name):
            return f"{name} has a name that {_NO_NAME}"
        blocks = getattr(kernel, "capabilities", None)
        if not isinstance(blocks, tuple) or not all(isinstance(block, Capabilities) for block in blocks):
            return f"capabilities of {name} is no tuple of xattn.Capabilities"
        problems = [problem for block in blocks for problem in block.problems(self.vocabularies[op])]
        return f"capabilities of {name}: {'; '.join(problems)}" if problems else None

    def problems(self) -> list[str]:
        """What is wrong with this installation, a line each: plugins that failed, names that stand for nothing."""
        found = [
            f"plugin {plugin.name} ({plugin.distribution} {plugin.version}): {failure}"
            for plugin in self.plugins
            for failure in plugin.failures
        ]
        plugins = {plugin.name for plugin in self.plugins}
        unknown = [name for name in self.disabled if name not in plugins and name not in self.entries]
        return found + [f"XATTN_DISABLE: {self.unknown(name)}" for name in unknown]

    def unknown(self, name: object) -> str:
        """What to tell the user of a name that no backend and no plugin has."""
        entries = self.entries.values()
        kernels = [f"{entry.name}.{each.name}" for entry in entries for each in entry.every_kernel if each.name]
        known = sorted({*self.entries, *(entry.plugin for entry in entries), *kernels})
        text = f"no backend or plugin is called {name!r}; there are: {', '.join(known) or 'none'}"
        close = difflib.get_close_matches(str(name).lower(), known, n=1)
        return f'{text}. Did you mean "{close[0]}"?' if close else text

    def entry(self, name: str) -> Entry:
        """The backend that `names` gave, or that one kernel of it."""
        backend, _, kernel = name.partition(".")
        entry = self.entries[backend]
        return replace(entry, only=kernel) if kernel else entry

    def names(self, name: str) -> list[str]:
        """The backends that a name stands for: a backend's own, all of a plugin's, or a kernel of a backend's."""
        backend, _, kernel = name.partition(".")
        if name in self.entries or (kernel and backend in self.entries and self.entry(name).ops):
            return [name]
        return [entry.name for entry in self.entries.values() if entry.plugin == name]

    def kernels(self, op: str) -> list[tuple[Entry, Kernel[Any]]]:
        """Every kernel of an op, in order of registration."""
        return [(entry, kernel) for entry in self.entries.values() for kernel in entry.kernels(op)]

    def ordered(self, request: Request) -> list[tuple[Entry, Kernel[Any]]]:
        """Kernels in the order in which `auto` tries them: by declared priority, then by registration."""
        return by_rank(self.kernels(request.op), request)


def by_rank(kernels: list[tuple[Entry, Kernel[Any]]], request: Request) -> list[tuple[Entry, Kernel[Any]]]:
    """By rank, the highest first; of equals the first registered."""

    def declared(of: tuple[Entry, Kernel[Any]]) -> int:
        try:
            return of[1].rank(request)
        except BaseException as error:
            if not is_plugins(error):
                raise
            return sys.maxsize  # asked first, so that selection.kernel_reasons reports the failure

    return sorted(kernels, key=declared, reverse=True)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name != "auto"


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point comes from."""
    if entry_point.dist is None:
        return "", ""
    # What a half-removed distribution without METADATA does here, error or None, depends on Python's version.
    try:
        return entry_point.dist.name or "unknown", entry_point.dist.version or "unknown"
    except Exception:
        return "unknown", "unknown"


def split_names(value: str) -> tuple[str, ...]:
    """The comma-separated names of an environment variable."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


_registry: Registry | None = None
_vocabularies: list[Vocabulary] = []


def declare(vocabularies: Iterable[Vocabulary]) -> None:
    """Say which ops there are: `xattn.ops` does, before the first call."""
    _vocabularies.extend(vocabularies)


@traced_as_constant  # instead of tracing through importlib; `_registry` is then read as any global, with guards
def _load() -> bool:
    """Load the plugins, once."""
    if _registry is None:
        swap(loaded(entry_points(group=ENTRY_POINT_GROUP), split_names(os.environ.get("XATTN_DISABLE", ""))))
    return True


def loaded(plugins: Iterable[EntryPoint], disabled: Iterable[str]) -> Registry:
    """A registry of these plugins."""
    loading = Registry(_vocabularies, disabled)
    loading.load(plugins)
    return loading


def swap(other: Registry | None) -> Registry | None:
    """Make another registry that of this process, None to load anew; returns the one before."""
    global _registry
    before, _registry = _registry, other
    return before


def registry() -> Registry:
    """The registry of this process, loaded on first use: `import xattn` imports no plugin."""
    _load()
    assert _registry is not None
    return _registry
