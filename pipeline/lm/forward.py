"""Running a model from the middle: the resumed forward that every fast path uses, and how it equals the whole forward.

An edit or a restoration at block l and token t changes nothing below l nor left of t. So `record` runs packed
prompts once and keeps each block's input and every token's keys and values; `climb` then runs only the tokens that
can change (a `Suffix`), only through the blocks above the change, and lets rows join when the pass reaches their
block ("staircase" batching), so that one pass serves the edits of all layers.

Blocks are called as the model itself calls them: `record` keeps each block's arguments (rotary embeddings, position
ids, ...), and `Suffix` re-indexes them by token. No line here asks which family the model is of.

A model may be spread over several devices (`model.device_map`). Each block then takes its input to where its weights
are; everything recorded, keys and values excepted, and every output here is on the embedding's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Packed, Prompt, pack


@dataclass
class Call:
    """The arguments with which the model called one block; the block's input itself is left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Recording:
    """What one run of packed prompts left behind; B is 1, or the number of noise samples.

    packed: the prompts, N tokens. h: n_layers + 1 tensors (B, N, d), the blocks' inputs and the last block's output.
    keys, values: n_layers tensors (B, heads, N, head size). mlp_in: n_layers tensors (B, N, d_ff), the input of the
    down-projection (none where the MLP is experts); mlp_out, attn_out: n_layers tensors (B, N, d). Parts that were not
    asked for are empty.
    """

    packed: Packed
    h: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    mlp_in: list[Tensor]
    mlp_out: list[Tensor]
    attn_out: list[Tensor]
    calls: list[Call]
    mask: Tensor


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(Q, K) bool to a (1, 1, Q, K) float mask: 0 where visible, the type's minimum elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]


@contextmanager
def added_to_embeddings(lm: LanguageModel, noise: Tensor | None) -> Iterator[None]:
    """Within: `noise`, broadcastable to (B, N, d), is added to the output of the input embeddings."""
    if noise is None:
        yield
        return
    handle = lm.arch.embedding.register_forward_hook(lambda _module, _args, output: output + noise.to(output))
    try:
        yield
    finally:
        handle.remove()


def first(output: Any) -> Tensor:
    """The hidden states of a module that returns them alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def as_was(output: Any, hidden: Tensor) -> Any:
    """A module's output with `hidden` in the place of its hidden states, alone or first in a tuple as they came."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def record(
    lm: LanguageModel, packed: Packed, *, noise: Tensor | None = None, mlp: bool = True, attn: bool = False
) -> Recording:
    """Run packed prompts once through the whole model (the head excepted).

    noise: (B, M, d), added to the embeddings of the tokens whose `packed.noise` names a row of it; B samples are
    run as one batch. The result has B = 1 without noise.
    """
    from transformers import DynamicCache

    arch, device = lm.arch, lm.device
    batch = 1 if noise is None else noise.shape[0]
    spread = None
    if noise is not None:
        spread = torch.zeros(batch, len(packed), noise.shape[-1], dtype=noise.dtype, device=device)
        noised = (packed.noise >= 0).nonzero()[:, 0]
        spread[:, noised.to(device)] = noise.to(device)[:, packed.noise[noised].to(device)]
    mask = additive_mask(packed.visible.to(device), lm.dtype)
    cache = DynamicCache()
    inputs: list[Tensor] = []
    calls: list[Call] = []
    mlp_in: list[Tensor] = []
    mlp_out: list[Tensor] = []
    attn_out: list[Tensor] = []
    last: list[Tensor] = []

    def before_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0].to(device))
        calls.append(Call(args[1:], dict(kwargs)))

    def after_mlp(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if arch.has_down_projs:
            mlp_in.append(args[0].reshape(batch, len(packed), -1).to(device))
        # A copy, as Falcon adds its attention to the MLP's output in place.
        mlp_out.append(output.reshape(batch, len(packed), -1).to(device, copy=True))

    def keep(outputs: list[Tensor]) -> Callable[..., None]:
        return lambda _module, _args, output: outputs.append(first(output).to(device))

    with ExitStack() as stack:
        for block in arch.blocks:
            stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
        stack.callback(arch.blocks[-1].register_forward_hook(keep(last)).remove)
        if mlp:
            for module in arch.mlp_ends:
                stack.callback(module.register_forward_hook(after_mlp).remove)
        if attn:
            for module in arch.attns:
                stack.callback(module.register_forward_hook(keep(attn_out)).remove)
        stack.enter_context(added_to_embeddings(lm, spread))
        lm.body(
            input_ids=packed.ids.to(device)[None].expand(batch, -1),
            position_ids=packed.positions.to(device)[None],
            attention_mask=mask.expand(batch, -1, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )
    kept: list[Any] = list(cache.layers)
    keys, values = [layer.keys for layer in kept], [layer.values for layer in kept]
    for call in calls:  # the cache itself must not be kept alive by the calls
        call.args = tuple(_CACHE if arg is cache else arg for arg in call.args)
        call.kwargs = {name: _CACHE if arg is cache else arg for name, arg in call.kwargs.items()}
    return Recording(packed, [*inputs, last[0]], keys, values, mlp_in, mlp_out, attn_out, calls, mask)


_CACHE = object()  # stands where the recorded call had its key-value cache


class _Prefix:
    """A key-value cache of one block that can only be read: what attention sees left of the live tokens."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys.shape[2] == 0:
            return keys, values
        rows = keys.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), keys], 2),
            torch.cat([self.values.expand(rows, -1, -1, -1), values], 2),
        )


class Suffix:
    """The live tokens of a recording: those that are run again, and what of the rest they attend to.

    recording: where the frozen keys and values come from.
    origin: (S,) recorded token of which each live token is a copy; one recorded token may have several live copies.
    sees_frozen: (S, N) bool, the recorded tokens that a live token attends to as they were.
    sees_live: (S, S) bool, the live tokens that it attends to.
    """

    def __init__(self, recording: Recording, origin: Tensor, sees_frozen: Tensor, sees_live: Tensor):
        device = recording.h[0].device
        self.recording = recording
        self.origin = origin.to(device)
        self.frozen = sees_frozen.any(0).nonzero()[:, 0].to(device)
        visible = torch.cat([sees_frozen.to(device)[:, self.frozen], sees_live.to(device)], 1)
        self.mask = additive_mask(visible, recording.h[0].dtype)
        self._indexed: dict[int, Tensor] = {}  # rotary tables are shared by all blocks: index each once
        self.calls = [
            Call(tuple(map(self._at, c.args)), {k: self._at(v) for k, v in c.kwargs.items()}) for c in recording.calls
        ]
        self.keys = [k.index_select(2, self.frozen.to(k.device)) for k in recording.keys]
        self.values = [v.index_select(2, self.frozen.to(v.device)) for v in recording.values]

    @classmethod
    def after(cls, recording: Recording, live: Sequence[int]) -> Suffix:
        """Every recorded token in `live` runs again, the others are frozen; live tokens' descendants must be live
        too.
        """
        index = torch.tensor(live)
        visible = recording.packed.visible
        is_live = torch.zeros(len(visible), dtype=torch.bool)
        is_live[index] = True
        return cls(recording, index, visible[index] & ~is_live, visible[index][:, index])

    def _at(self, value: Any) -> Any:
        """One argument of a block's call, for the live tokens."""
        n = len(self.recording.packed)
        if isinstance(value, tuple):
            return tuple(map(self._at, value))
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 4 and value.shape[-2:] == (n, n):
            return self.mask
        if id(value) not in self._indexed:
            at = value
            if value.ndim >= 2 and value.shape[1] == n:
                at = value.index_select(1, self.origin.to(value.device))
            elif value.ndim == 1 and value.shape[0] == n:
                at = value.index_select(0, self.origin.to(value.device))
            self._indexed[id(value)] = at
        return self._indexed[id(value)]

    def live(self, tensor: Tensor) -> Tensor:
        """A recorded (B, N, ...) tensor at the live tokens: (B, S, ...)."""
        return tensor.index_select(1, self.origin)

    def run_block(self, lm: LanguageModel, layer: int, h: Tensor, sample: Tensor | None) -> Tensor:
        """Block `layer` on the live tokens; h (R, S, d) to (R, S, d).

        sample: (R,) which of the recording's B samples each row continues; None where B is 1.
        """
        keys, values, call = self.keys[layer], self.values[layer], self.calls[layer]
        if sample is not None:
            sample = sample.to(keys.device)
            keys, values = keys.index_select(0, sample), values.index_select(0, sample)
        prefix = _Prefix(keys, values)

        def fill(value: Any) -> Any:
            return prefix if value is _CACHE else value

        output = lm.arch.blocks[layer](h, *map(fill, call.args), **{k: fill(v) for k, v in call.kwargs.items()})
        return first(output).to(h.device)


Join = Callable[[int], "tuple[Tensor, Tensor | None] | None"]


def climb(lm: LanguageModel, suffix: Suffix, start: int, join: Join) -> Tensor:
    """One pass over the blocks from `start` up; rows join as it goes.

    join(l) gives the rows that enter as inputs of block l, (R_l, S, d) and their samples (R_l,) or None, or None
    for no rows; it is asked for l = start .. n_layers, where n_layers means: only the last block's output. Returns
    the last block's outputs, (R, S, d), rows in the order in which they joined.
    """
    h: Tensor | None = None
    sample: Tensor | None = None
    for layer in range(start, lm.n_layers + 1):
        joined = join(layer)
        if joined is not None:
            rows, of = joined
            h = rows if h is None else torch.cat([h, rows])
            if of is not None:
                sample = of if sample is None else torch.cat([sample, of])
        if layer < lm.n_layers and h is not None:
            h = suffix.run_block(lm, layer, h, sample)
    if h is None:
        raise ValueError("no row joined")
    return h


def proven(lm: LanguageModel) -> LanguageModel:
    """The model with `fast` as `resumes` finds it."""
    return replace(lm, fast=resumes(lm))


@torch.no_grad()
def resumes(lm: LanguageModel) -> bool:
    """Whether packed prompts and the resumed forward give for this model what its own forward gives prompt by prompt.

    Tried on two prompts that begin alike, with one MLP output changed where they do. A family that is not known by
    name may have parts that nothing here asks about, and one may place its tokens by where they stand in the batch;
    such a model is run on the plain path.
    """
    if not lm.arch.mlp_adds or lm.n_layers < 2:
        return False
    texts = ("The quick brown fox jumps over the lazy dog", "The quick brown fox sleeps")
    prompts = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    layer, token = lm.n_layers // 2 - 1, 1
    try:
        packed = pack(prompts)
        recording = record(lm, packed)
        output = recording.mlp_out[layer][0, token]
        delta = output.flip(-1)
        change = lm.arch.mlp_change(layer, output, delta)
        at = torch.tensor([token], device=lm.device)
        suffix = Suffix.after(recording, range(token, len(packed)))
        joined = suffix.live(recording.h[layer + 1].index_add(1, at, change[None, None]))
        hidden = climb(lm, suffix, layer + 1, lambda block: (joined, None) if block == layer + 1 else None)
        fast = lm.arch.logits(hidden)[0]

        def add(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
            return out.reshape(-1, out.shape[-1]).index_add(0, at, delta[None]).reshape(out.shape)

        handle = lm.arch.mlp_ends[layer].register_forward_hook(add)
        try:
            return all(
                _alike(
                    fast[torch.tensor(path[token:], device=lm.device) - token],
                    lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0, token:],
                )
                for ids, path in zip(prompts, packed.where, strict=True)
            )
        finally:
            handle.remove()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False


def _alike(one: Tensor, own: Tensor) -> bool:
    """Whether two tensors of logits (T, V) say the same, but for rounding: in their probabilities, and in how far
    log-probabilities lie apart, as a model that has learnt nothing gives all tokens much the same probability.
    """
    logs, own_logs = one.double().log_softmax(-1), own.double().log_softmax(-1)
    spread = (own_logs - own_logs.mean(-1, keepdim=True)).norm()
    bound, relative = (1e-3, 1e-2) if own.dtype in (torch.float32, torch.float64) else (5e-2, 1e-1)
    near = (logs.exp() - own_logs.exp()).abs().max() <= bound
    return bool(near and (logs - own_logs).norm() <= relative * spread)


def log_probabilities(lm: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of `targets` (..., long) after last-block outputs `hidden` (..., d), in float32 or better."""
    logits = lm.arch.logits(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


@torch.no_grad()
def read_logits(lm: LanguageModel, prompts: Sequence[Prompt]) -> Tensor:
    """Logits (R, V) at the read positions of all prompts, one after the other, in one packed run; the head only
    there.
    """
    packed = pack([prompt.ids[:-1] for prompt in prompts])
    hidden = record(lm, packed, mlp=False).h[-1][0]
    return lm.arch.logits(hidden[[packed.where[p][j] for p, prompt in enumerate(prompts) for j in prompt.reads]])


@torch.no_grad()
def last_logits(lm: LanguageModel, ids: Sequence[int], noise: Tensor) -> Tensor:
    """Logits (B, V) after the token ids, for each of B samples of noise (B, T, width) on their embeddings."""
    recording = record(lm, pack([ids], [list(range(len(ids)))]), noise=noise, mlp=False)
    return lm.arch.logits(recording.h[-1][:, -1])
