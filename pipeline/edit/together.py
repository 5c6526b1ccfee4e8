"""Fine-tuning on many requests at once: the baseline FT-W of Meng et al. 2023, "Mass-Editing Memory in a Transformer".

Adam on the down-projection of a block (or of a window of them), `steps` times through all requests in batches of
`batch`, for the mean NLL of the targets after the bare prompts. A batch whose loss is below `stop_loss` takes no step,
and tuning ends once the mean over all batches of a pass is below it. Weight decay is Adam's own (L2): decay * W is
added to the gradient. Meng et al. let it depend on the number of requests n, as n^a e^b, and tune all weights of the
block; here it is the down-projection alone, as in the methods of pipeline.edit.finetune, whose settings these are.

What is tuned is the change D of W, from 0, through one resumed forward from the lowest tuned block up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.edit.climbing import climbed
from pipeline.edit.finetune import FineTuneSettings, finished, zeros
from pipeline.edit.protocol import Dense, Edit, EditRequest
from pipeline.errors import UserError
from pipeline.lm.forward import Suffix, log_probabilities, record
from pipeline.lm.memory import row_bytes
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.prompts import Prompt, pack

TOKENS = 1024  # of the prompts of one pass on a CPU; more leaves the caches


def tuned_together(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    settings: FineTuneSettings,
    layer: int,
    *,
    batch: int,
    decay: float = 0.0,
    memory: int | None = None,
) -> Edit:
    """One edit of the window around `layer` that holds all requests, none of which may noise its subject.

    batch: requests of one step of Adam. decay: weight decay. memory: bytes that a pass may take, None for no bound.
    Raises UserError where there is no resumed forward (path: plain).
    """
    if not lm.fast:
        raise UserError("tuning on many facts at once is done by the resumed forward only; this model or path has none")
    assert all(request.noise is None and not request.minimise for request in requests)
    blocks = window_range(layer, settings.window, lm.n_layers)
    changes = zeros(lm, blocks)
    start = {block: _weight(lm, block) for block in blocks} if decay else {}
    optimiser = torch.optim.Adam(changes.values(), settings.learning_rate, fused=True)
    groups = [requests[low : low + batch] for low in range(0, len(requests), batch)]
    batches = [[_Part(lm, part, blocks[0]) for part in _parts(lm, group, memory)] for group in groups]
    least, value, steps = settings.stop_loss or 0.0, float("nan"), 0
    for _ in range(settings.steps):
        total = 0.0
        for group, parts in zip(groups, batches, strict=True):
            optimiser.zero_grad(set_to_none=True)
            loss = 0.0
            for part in parts:
                nll = part.losses(lm, changes).sum() / len(group)
                nll.backward()
                loss += float(nll.detach())
            total += loss * len(group)
            if loss >= least or loss != loss:
                _step(optimiser, changes, start, decay, settings.max_change)
        value, steps = total / len(requests), steps + 1
        if value < least or value != value:
            break
    return finished(lm, layer, changes, value, steps, settings.max_change)


def _step(
    optimiser: torch.optim.Optimizer,
    changes: Mapping[int, Tensor],
    start: Mapping[int, Tensor],
    decay: float,
    bound: float | None,
) -> None:
    with torch.no_grad():
        for block, weight in start.items():
            grad = changes[block].grad
            assert grad is not None
            grad += decay * (weight + changes[block])
    optimiser.step()
    if bound is not None:
        with torch.no_grad():
            for change in changes.values():
                change.clamp_(-bound, bound)


def _weight(lm: LanguageModel, block: int) -> Tensor:
    """W (d, d_ff) of a block before the first step, float32 or float64."""
    with lm.arch.weight(block) as weight:
        return weight.to(lm.device, torch.float64 if lm.dtype == torch.float64 else torch.float32, copy=True)


def _bare(request: EditRequest) -> Prompt:
    return request.prompts[0]


def _parts(lm: LanguageModel, requests: Sequence[EditRequest], memory: int | None) -> Iterator[list[EditRequest]]:
    """The requests in runs that pass through the model together, as their tokens and the memory allow."""
    most = TOKENS if lm.device.type == "cpu" else 8 * TOKENS
    if memory is not None:
        one = _Part(lm, requests[:1], 0)
        each = row_bytes(lm, one.suffix, len(one.reads), gradient=True) / len(one.suffix.origin)
        most = min(most, int(memory / each))
    part: list[EditRequest] = []
    tokens = 0
    for request in requests:
        more = len(_bare(request).ids) - 1
        if part and tokens + more > most:
            yield part
            part, tokens = [], 0
        part.append(request)
        tokens += more
    yield part


class _Part:
    """The bare prompts of some requests, recorded once on the unedited model; what block `lowest` needs is kept."""

    def __init__(self, lm: LanguageModel, requests: Sequence[EditRequest], lowest: int):
        prompts = [_bare(request) for request in requests]
        packed = pack([prompt.ids[:-1] for prompt in prompts])
        recording = record(lm, packed)
        self.suffix = Suffix.after(recording, range(len(packed)))
        none = recording.h[0].new_zeros(())
        recording.h = [h if i == lowest + 1 else none for i, h in enumerate(recording.h)]
        recording.mlp_in = [k if i == lowest else none for i, k in enumerate(recording.mlp_in)]
        recording.mlp_out = [v if i == lowest else none for i, v in enumerate(recording.mlp_out)]
        recording.keys, recording.values = [], []
        reads = [packed.where[p][j] for p, prompt in enumerate(prompts) for j in prompt.reads]
        owners = [p for p, prompt in enumerate(prompts) for _ in prompt.reads]
        shares = [1 / len(prompt.reads) for prompt in prompts for _ in prompt.reads]
        targets = [token for prompt in prompts for token in prompt.target_ids]
        self.count = len(prompts)
        self.reads, self.owners, self.targets = (torch.tensor(x, device=lm.device) for x in (reads, owners, targets))
        self.shares = torch.tensor(shares, device=lm.device, dtype=torch.float64)

    def losses(self, lm: LanguageModel, changes: Mapping[int, Tensor]) -> Tensor:
        """The mean NLL of each request's target tokens under the changes: (requests,)."""
        hidden = climbed(lm, self.suffix, [[Dense(block, change) for block, change in changes.items()]])
        logs = log_probabilities(lm, hidden[0, self.reads], self.targets)
        return logs.new_zeros(self.count).index_add(0, self.owners, -logs * self.shares.to(logs))
