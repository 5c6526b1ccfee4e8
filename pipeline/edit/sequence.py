"""Many edits by a method that makes one at a time: each is computed on the model with the earlier ones in its weights.

So Meng et al. 2023, "Mass-Editing Memory in a Transformer", section 5, run ROME on many facts: v*, k* and k of each
edit are of the model as changed so far, its rank-one update is added to those before, and C stays that of the unedited
model.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.edit.protocol import Edit, Editor, EditRequest, LowRank, Update
from pipeline.lm.memory import halving
from pipeline.lm.model import LanguageModel, window_range


def in_sequence(
    lm: LanguageModel,
    editor: Editor,
    requests: Sequence[EditRequest],
    layer: int,
    memory: int,
    before: Sequence[Update] = (),
) -> list[Edit]:
    """One edit of `layer` for each request, on top of the changes `before`, which earlier requests left.

    An edit that fails changes nothing, and the next goes on from there. Low-rank updates come back in float64, so that
    who stores them and goes on later has the weights of who never stopped. memory: bytes that a batch may take. The
    weights are what they were afterwards, bit for bit.
    """
    edits = []
    blocks = window_range(layer, editor.window, lm.n_layers) if editor.window else range(lm.n_layers)  # 0: all
    with lm.arch.kept(blocks):
        for update in before:
            lm.arch.add_to_weight(update.layer, update.matrix())
        for request in requests:
            edit = _edit(lm, editor, request, layer, memory)
            edits.append(edit)
            for update in edit.updates:
                lm.arch.add_to_weight(update.layer, update.matrix())
    return edits


def _edit(lm: LanguageModel, editor: Editor, request: EditRequest, layer: int, memory: int) -> Edit:
    (edit,) = halving(lambda allowed: editor.edit(lm, request, [layer], allowed), memory)
    updates = tuple(
        LowRank(u.layer, u.left.double(), u.right.double()) if isinstance(u, LowRank) else u for u in edit.updates
    )
    return Edit(**{**vars(edit), "updates": updates})
