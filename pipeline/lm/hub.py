"""The Hugging Face hub: a model whose files are in its cache here is loaded without asking it, and a hub that does not
answer is told after one try.

huggingface_hub itself asks for each file anew, five more times, with pauses that grow to 8 s.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from pipeline.errors import UserError
from pipeline.lm.folders import check_folder

PATIENCE = 8.0  # seconds for the one try


def copy_here(name: str, revision: str | None, allow_pickle: bool) -> Path | None:
    """The folder of a hub's model in the local cache; None where it is not there, or not whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        check_folder(folder, allow_pickle)
    except (OSError, ValueError, UserError):  # the library's own errors are among these
        return None
    return folder if _has_weights(folder, allow_pickle) else None


def _has_weights(folder: Path, allow_pickle: bool) -> bool:
    """Whether the weights are there, all shards of them: a download may have been cut off between two."""
    for name in ("model.safetensors", *(["pytorch_model.bin"] if allow_pickle else [])):
        if (folder / name).is_file():
            return True
        try:
            shards = set(json.loads((folder / f"{name}.index.json").read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return bool(shards) and all((folder / str(shard)).is_file() for shard in shards)
    return False


def knock(name: str) -> None:
    """Raise UserError where the hub that has the model `name` does not answer."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        told = [f"no answer within {PATIENCE:g} s"]

        def ask() -> None:
            try:
                status = get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code
                told.append(f"it answers {status}" if status >= 500 else "")
            except Exception as error:  # of the client's many kinds, or of what a proxy makes of it
                told.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

        # In a thread, as looking up the name of the hub knows no limit of time.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        why = told[-1]
    if why:
        raise UserError(
            f"model.name {name!r} is no folder here and, as a hub name, not in the cache of the hub's models "
            f"({constants.HF_HUB_CACHE}), and the hub {constants.ENDPOINT} can't be reached ({why}); name a local "
            "folder, or mend the connection or HF_ENDPOINT"
        )
