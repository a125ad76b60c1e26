from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import BadSetting
from common.settings import Settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MLSYS_{name.upper()}", raising=False)


def test_without_variables_everything_is_embedded_under_one_folder() -> None:
    settings = Settings()
    assert settings.home == Path(".mlsys")
    assert settings.systems == "systems"
    assert (settings.data_dir, settings.database_url, settings.redis_url, settings.ray_address) == (None,) * 4


def test_variables_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_HOME", "/srv/mlsys")
    monkeypatch.setenv("MLSYS_DATA_DIR", "/data")
    monkeypatch.setenv("MLSYS_SYSTEMS", "my.systems")
    monkeypatch.setenv("MLSYS_DATABASE_URL", "postgresql://u:p@db/mlsys")
    monkeypatch.setenv("MLSYS_REDIS_URL", "redis://cache")
    assert Settings() == Settings(
        home=Path("/srv/mlsys"),
        data_dir=Path("/data"),
        systems="my.systems",
        database_url="postgresql://u:p@db/mlsys",
        redis_url="redis://cache",
    )


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_DATA_DIR", "")
    assert Settings().data_dir is None


def test_bad_variables_are_named_in_one_line_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_DATABASE_URL", "mysql://u:secret@db")
    monkeypatch.setenv("MLSYS_SYSTEMS", "no/package")
    with pytest.raises(BadSetting) as caught:
        Settings()
    assert "MLSYS_DATABASE_URL: string should match" in str(caught.value)
    assert "MLSYS_SYSTEMS: string should match" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_show_no_password_and_do_not_change() -> None:
    settings = Settings(database_url="postgresql://u:secret@db")
    assert "secret" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.home = Path("/")


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan", "much"])
def test_a_share_lies_between_0_and_1(monkeypatch: pytest.MonkeyPatch, share: str) -> None:
    monkeypatch.setenv("MLSYS_MAX_QUARANTINED", share)
    with pytest.raises(BadSetting, match="^MLSYS_MAX_QUARANTINED: input should be"):
        Settings()
