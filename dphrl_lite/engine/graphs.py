"""Decoding over buffers that never move, so that one token of all rows is one captured CUDA graph. Draws nothing.

Why: a token of a 7B model with LoRA is some 2,900 kernels of a few microseconds each, and a Python program launches them more
slowly than a GPU runs them. A captured graph launches all at once. It replays the same kernels on the same addresses, so token,
position, mask, keys, values and logits live in fixed buffers, and weights must stay where they are: an optimizer that updates
them in place is seen by the next replay; weights that have moved, or an adapter switched off, get a capture of their own.

On a CPU the same buffers run without a graph: that is how the tests compare this way with the other.
"""

import weakref
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from dphrl_lite.engine import sharding
from dphrl_lite.engine.kv_cache import FixedLayer

KEPT_BYTES = 1 << 30  # of buffers that stay, with their graphs, for the next call; more are given back
STEP = 64  # a row's room is a multiple, so that prompts of another length find the same buffers
_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> its `Slots`


def wanted(policy, cache, captured: bool | None) -> bool:
    """Whether to decode over fixed buffers; where a GPU cannot, the policy's reasons say why.

    Raises `NotImplementedError` for `captured=True` where the model cannot.
    """
    if captured is False or (captured is None and policy.device.type != "cuda"):
        return False
    why = _obstacle(policy.model, cache)
    if why and captured:
        raise NotImplementedError(f"{why}; expected full attention in every layer. Leave out captured=True")
    if why:
        _note(policy, f"decoding kernel by kernel, not by a captured graph: {why}")
    return not why


def _obstacle(model, cache) -> str:
    """Why this model cannot decode over fixed buffers; empty if it can."""
    if sharding.asked():
        return "weights are spread over several GPUs, and come together in other places each time"
    config = getattr(model, "config", None)
    other = {type(layer).__name__ for layer in getattr(cache, "layers", ())} - {DynamicLayer.__name__}
    if config is None or other or not getattr(cache, "layers", ()):
        return f"this model keeps something else than all keys and values ({', '.join(sorted(other)) or 'no cache'})"
    attention = getattr(config.get_text_config(), "_attn_implementation", "sdpa")
    return "" if attention in ("sdpa", "eager") else f"attention {attention!r} takes no mask of its own"


def _note(policy, reason: str):
    if reason not in policy.reasons:
        policy.reasons.append(reason)


@contextmanager
def tidied(model):
    """Afterwards small buffers stay, with their graphs, for the next time; large ones, or after an error all, are given back."""
    try:
        yield
    except BaseException:
        _kept.pop(model, None)
        raise
    if model in _kept and _kept[model].nbytes > KEPT_BYTES:
        del _kept[model]


def rows_for(count: int, capacity: int) -> int:
    """Rows computed where `count` are asked for: a power of two, or from 8 on the capacity itself if that is nearer."""
    return min(capacity, 1 << (count - 1).bit_length())


def room_for(tokens: int) -> int:
    """Tokens in the buffers of a row that needs `tokens`."""
    return -(-tokens // STEP) * STEP


def capacity_for(rows: int) -> int:
    """Rows that the buffers hold where `rows` are asked for."""
    return -(-rows // 8) * 8 if rows > 8 else rows


class FixedRows:
    """The rows still being written, first in the buffers of a `Slots`; the methods are those of `decoding.Rows`."""

    def __init__(self, policy, cache, attention: Tensor, logits: Tensor, samples: int, length: int):
        self.policy, self.logits, self.count = policy, logits, len(logits)
        self.slots = _slots(policy.model, cache, self.count, attention.shape[1] + length, logits.shape[-1])
        self.slots.fill(cache, attention, samples)
        self.adapter = self.slots.check(policy.model)
        self.size = rows_for(self.count, self.slots.capacity)

    def shrinks(self, going: int) -> bool:
        """Whether `going` rows have a smaller graph."""
        return rows_for(going, self.slots.capacity) < self.size

    def select(self, keep: Tensor):
        """Only keep these rows."""
        self.slots.select(keep)
        self.count = len(keep)
        self.size = rows_for(self.count, self.slots.capacity)

    def append(self, tokens: Tensor):
        """Read one more token in every row, `[rows, 1]`."""
        self.slots.token[: self.count].copy_(tokens)
        self.slots.run(self.policy, self.size, self.adapter)
        self.logits = self.slots.logits[: self.count]


def _slots(model, cache, rows: int, tokens: int, vocabulary: int) -> "Slots":
    """The buffers kept for this model if they are large enough and not far too large, else new ones."""
    slots, room = _kept.get(model), room_for(tokens)
    if slots is None or not slots.fits(cache, rows, room):
        _kept.pop(model, None)
        slots = None  # before the new ones are made
        _kept[model] = slots = Slots(cache, capacity_for(rows), room, vocabulary)
    return slots


class Slots:
    """Fixed buffers for up to `capacity` rows of `room` tokens, and the graphs captured over their first rows.

    Key and value buffers are `[capacity, heads, room, head size]`, one pair a layer; the mask `[capacity, 1, 1, room]` is
    added to scores; all rows write at the same `slot`, each at a `position` of its own.
    """

    def __init__(self, cache, capacity: int, room: int, vocabulary: int):
        layers, self.capacity, self.room = cache.layers, capacity, room
        device, dtype = layers[0].keys.device, layers[0].keys.dtype
        self.pairs = [tuple(self._buffer(x) for x in (layer.keys, layer.values)) for layer in layers]
        self.mask = torch.zeros(capacity, 1, 1, room, device=device, dtype=dtype)
        self.token, self.position = (torch.zeros(capacity, 1, device=device, dtype=torch.long) for _ in range(2))
        self.slot = torch.zeros(1, device=device, dtype=torch.long)
        self.logits = torch.zeros(capacity, vocabulary, device=device)
        self.graphs, self.places, self.plain = {}, None, device.type != "cuda"
        self.pool = None if self.plain else torch.cuda.graph_pool_handle()

    def _buffer(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.capacity, states.shape[1], self.room, states.shape[3])

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        return sum(x.nbytes for pair in self.pairs for x in pair) + self.mask.nbytes + self.logits.nbytes

    def fits(self, cache, rows: int, room: int) -> bool:
        """Whether these buffers serve: attention reads all of a row's room, so it may be twice too large, not more."""
        new, keys = cache.layers[0].keys, self.pairs[0][0]
        same = (new.dtype, new.device, new.shape[1], new.shape[3]) == (
            keys.dtype,
            keys.device,
            keys.shape[1],
            keys.shape[3],
        )
        return same and rows <= self.capacity and room <= self.room <= 2 * room

    def fill(self, cache, attention: Tensor, samples: int):
        """Begin: each prompt's keys and values in the rows of its `samples` completions, the rest empty and unseen."""
        groups, width = attention.shape
        hidden = torch.finfo(self.mask.dtype).min
        for pair, layer in zip(self.pairs, cache.layers, strict=True):
            for buffer, states in zip(pair, (layer.keys, layer.values), strict=True):
                buffer.zero_()  # what is not seen has weight 0, and 0 times a number that is none would be none
                rows = buffer[: groups * samples].unflatten(0, (groups, samples))
                rows[..., :width, :].copy_(states[:, None])
        self.mask.fill_(hidden)
        seen = torch.zeros_like(attention, dtype=self.mask.dtype).masked_fill_(attention == 0, hidden)
        self.mask[: groups * samples, 0, 0, :width] = seen.repeat_interleave(samples, 0)
        self.position[: groups * samples] = attention.sum(-1, keepdim=True).repeat_interleave(samples, 0)
        self.slot.fill_(width)

    def select(self, keep: Tensor):
        """Move these rows to the front."""
        for buffer in (*(x for pair in self.pairs for x in pair), self.mask, self.position):
            buffer[: len(keep)] = buffer.index_select(0, keep)

    def check(self, model) -> tuple:
        """Before the first token of a call: forget all graphs if weights have moved. Returns which adapter is on."""
        places = hash(tuple(p.data_ptr() for p in model.parameters()))  # a graph reads these addresses and no others
        if places != self.places:
            self.graphs, self.places = {}, places
        return _adapter(model)

    def run(self, policy, size: int, adapter: tuple):
        """One token more in the first `size` rows: by their graph, captured at its first use, or kernel by kernel."""
        if self.plain:
            return self._step(policy.model, size)
        if (size, adapter) not in self.graphs:
            try:
                self.graphs[size, adapter] = self._capture(policy.model, size)
            except RuntimeError as error:
                self.plain = True
                _note(policy, f"decoding kernel by kernel, not by a captured graph: {str(error).splitlines()[0]}")
                return self._step(policy.model, size)
        return self.graphs[size, adapter].replay()

    def _forward(self, model, size: int):
        """Logits of the token in each row; done twice it leaves the same."""
        layers = [FixedLayer(keys[:size], values[:size], self.slot) for keys, values in self.pairs]
        cache = DynamicCache()
        cache.layers = layers
        out = model(
            input_ids=self.token[:size],
            attention_mask=self.mask[:size],
            position_ids=self.position[:size],
            past_key_values=cache,
            use_cache=True,
        )
        self.logits[:size] = out.logits[:, -1]

    def _step(self, model, size: int):
        self.mask.index_fill_(3, self.slot, 0.0)
        self._forward(model, size)
        self.position.add_(1)
        self.slot.add_(1)

    def _capture(self, model, size: int):
        """The graph of one step. Raises `RuntimeError` where a layer waits for the GPU, which no graph can."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward(model, size)  # libraries set themselves up at their first use
            with _waiting_is_an_error():
                self._forward(model, size)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._step(model, size)
        return graph


@contextmanager
def _waiting_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _adapter(model) -> tuple:
    """Which adapter is on, of a PEFT model: the first adapted layer's state stands for all."""
    layer = next((m for m in model.modules() if "lora_A" in m._modules), None)
    return () if layer is None else (layer.disable_adapters, layer.merged, tuple(layer.active_adapters))
