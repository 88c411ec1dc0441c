from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.models import cache_dir, resolve_model


@pytest.mark.parametrize("name", ["LORALOOM_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_cache_that_cannot_be_written_is_named_with_its_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("LORALOOM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    (tmp_path / "file").write_text("")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv(name, str(tmp_path / "file"))
    with pytest.raises(UserError) as caught:
        resolve_model(str(tmp_path / "model.gguf"))
    assert f"cache: cannot write to {cache_dir()}/models: " in str(caught.value)
    assert str(caught.value).endswith("set LORALOOM_CACHE to a folder that can be written")
