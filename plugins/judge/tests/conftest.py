from __future__ import annotations

from collections.abc import Iterator

import pytest
from rlhf_plugin_judge import client

from .toys import JudgeServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge at 127.0.0.1 that does as it is told; further attempts come soon."""
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    server = JudgeServer()
    yield server
    server.close()
