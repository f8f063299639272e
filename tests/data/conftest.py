"""A fetched asset of digits, and latents made of it with the real stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_factories import LatentSet, pixel_latents, write_spec

from fewstep import fetch
from fewstep.config.assets import Asset
from fewstep.config.specs import FetchSpec


@pytest.fixture(scope="session")
def digits_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    spec = FetchSpec(name="digits", asset=Asset(kind="sklearn", licence="CC BY 4.0"))
    fetch.main(["--spec", write_spec(folder / "fetch.json", spec), "--out", str(folder / "digits.json")])
    return folder / "digits.json"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, digits_record: Path) -> LatentSet:
    """Digits as pixels, both views, two shards. Read only: tests that change files copy the folder."""
    result = pixel_latents(tmp_path_factory.mktemp("latents"), digits_record)
    result.encode()
    return result
