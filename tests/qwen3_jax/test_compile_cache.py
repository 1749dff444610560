"""Where compiled programs are kept; that a second start finds them is tested in cli/test_program.py."""

import os

import jax
import pytest

from qwen3_jax import compile_cache
from qwen3_jax.compile_cache import VARIABLE, enable_compile_cache, user_cache


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What the call changes in jax's configuration is recorded and not done."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: changed.__setitem__(name, value))
    monkeypatch.delenv(VARIABLE, raising=False)
    return changed


def test_programs_of_any_size_are_kept_in_the_users_cache(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compile_cache() == tmp_path / "qwen3-jax" / "compiled"
    assert settings == {
        "jax_compilation_cache_dir": str(tmp_path / "qwen3-jax" / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def test_the_variable_moves_them_or_turns_the_cache_off(settings, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))
    assert enable_compile_cache() == tmp_path / "here"
    assert os.listdir(tmp_path / "here") == []
    settings.clear()
    monkeypatch.setenv(VARIABLE, "off")
    assert enable_compile_cache() is None
    assert settings == {}


def test_a_directory_that_can_not_be_written_is_warned_of_once_and_the_program_goes_on(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="every start compiles again") as caught:
        assert enable_compile_cache() is None
    assert len(caught) == 1
    assert settings == {}


def test_a_relative_cache_home_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache.Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "qwen3-jax"
