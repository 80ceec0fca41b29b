"""What `pytest --pyargs xattn_conformance --xattn-backend NAME` collects."""

from __future__ import annotations

import pytest

from xattn_conformance.running.under_pytest import CASE, Conformance


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plugin = metafunc.config.pluginmanager.get_plugin("xattn-conformance-session")
    if not isinstance(plugin, Conformance):
        raise pytest.UsageError("name a backend: --xattn-backend NAME")
    metafunc.parametrize(("backend", "case"), plugin.parameters(), ids=plugin.ids())


def test_case(backend: str, case: str, request: pytest.FixtureRequest) -> None:
    plugin = request.config.pluginmanager.get_plugin("xattn-conformance-session")
    assert isinstance(plugin, Conformance)
    result = plugin.judge(backend, case)
    request.node.stash[CASE] = (backend, result)
    request.node.user_properties.append(("xattn_status", result.status))
    if result.status in ("FAIL", "ERROR", "INVALID"):
        pytest.fail(plugin.told(result), pytrace=False)
