"""Backbones that are shipped with the package: configuration, tokenizer and processor, no weights."""

from pathlib import Path


def backbone_path(name: str) -> str:
    """Where the VLM called `name` is: the package's directory of an embedded one, else the name itself."""
    embedded = Path(__file__).parent / name
    return str(embedded) if (embedded / "config.json").is_file() else name
