"""The API with a tiny pair: one server for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import openai

    from ui.parts.loading import Loading


@pytest.fixture(scope="session")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Loading:
    from duogen.engine import Engine  # only they need it
    from duogen.models.pipeline import open_pair
    from tests.support.tiny import tiny_pair
    from ui.parts.loading import Loading

    loading = Loading()
    loading.engine = Engine(open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32"))
    loading.finished.set()
    return loading


@pytest.fixture(scope="session")
def address(loading: Loading) -> Iterator[str]:
    from tests.support.api import serve
    from ui.api.openai import Api

    with serve(Api(loading)) as address:
        yield address


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)
