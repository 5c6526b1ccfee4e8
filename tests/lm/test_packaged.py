"""The packaged models: wheels that are fetched, checked and unpacked, or refused in a sentence."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from pipeline.compute import fetch
from pipeline.errors import UserError
from pipeline.lm import cache, packaged
from pipeline.lm.packaged import Package


def test_an_unknown_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"'packaged:GPT-9' is not known.*SmolLM2-135M-Instruct"):
        fetch.ensure("packaged:GPT-9", 0)
    assert list(tmp_path.iterdir()) == []


CONTENT = b"GGUF of a kind"
PACKAGE = Package("carrier==1.0", "carrier/model.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def wheel(path: Path, member: str = PACKAGE.member, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_a_wheel_is_unpacked(tmp_path: Path) -> None:
    found = packaged.extract(wheel(tmp_path / "carrier-1.0.whl"), PACKAGE, tmp_path)
    assert found.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("member", "content", "told"),
    [
        (PACKAGE.member, b"GGUF of another kind", [PACKAGE.member, PACKAGE.sha256, "SHA-256", "20 bytes"]),
        (PACKAGE.member, b"", [PACKAGE.sha256, "0 bytes"]),
        ("carrier/other.gguf", CONTENT, [PACKAGE.member, "does not hold"]),
    ],
)
def test_a_wheel_with_other_content_is_refused(tmp_path: Path, member: str, content: bytes, told: list[str]) -> None:
    with pytest.raises(UserError) as error:
        packaged.extract(wheel(tmp_path / "carrier-1.0.whl", member, content), PACKAGE, tmp_path)
    assert [text for text in ["carrier-1.0.whl", *told] if text not in str(error.value)] == []


@pytest.mark.parametrize("keep", [0, 10, 60, -30])
def test_a_wheel_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = wheel(tmp_path / "carrier-1.0.whl")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"carrier-1\.0\.whl is damaged"):
        packaged.extract(path, PACKAGE, tmp_path)


def test_a_wheel_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path / "carrier-1.0.whl")
    content = path.read_bytes()
    path.write_bytes(content.replace(CONTENT, b"G" + bytes([CONTENT[1] ^ 1]) + CONTENT[2:]))
    with pytest.raises(UserError, match=r"carrier-1\.0\.whl"):
        packaged.extract(path, PACKAGE, tmp_path)


def test_what_pip_says_is_passed_on_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("FACT_EDITING_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "models"))
    monkeypatch.setitem(packaged.PACKAGES, "carried", PACKAGE)
    with pytest.raises(UserError, match=r"pip could not fetch carrier==1\.0, .*: ERROR: No matching distribution"):
        packaged.ensure("carried")
    wheel(tmp_path / "wheels" / "carrier-1.0-py3-none-any.whl", content=b"of another kind")
    with pytest.raises(UserError, match=r"carrier"):
        packaged.ensure("carried")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
