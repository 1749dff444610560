"""Where the data files lie that come with the package, in a checkout and in an installed wheel alike."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def configs_path() -> Path:
    """The directory of the YAML files: `configs/` of the checkout or of the installed package."""
    linked = _HERE / "configs"
    return linked if linked.is_dir() else _HERE.parent / "configs"  # a checkout without symbolic links


def pocket_path() -> Path:
    """The embedded pocket model, a directory in Hugging Face form."""
    return _HERE / "pocket"
