"""The key-value caches of sampling: one prompt's past shared by its completions, in buffers that grow or that never move."""

from torch import Tensor
from transformers.cache_utils import DynamicLayer


def share(model, cache, samples: int, limit: int):
    """Repeat each prompt's cache for its completions, in place, with room for `limit` tokens.

    Raises `NotImplementedError` where a layer keeps something else than keys and values, as linear attention does.
    """
    if not hasattr(cache, "batch_repeat_interleave") or any(getattr(cache, "is_linear", ())):
        raise NotImplementedError(
            f"models of type {model.config.model_type!r} keep a state that cannot be shared by several completions; "
            "expected attention layers with a key-value cache. Choose a transformer without linear attention"
        )
    if samples > 1:
        cache.batch_repeat_interleave(samples)
    for i, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer:  # a sliding window is short, and copied whole
            cache.layers[i] = RoomyLayer(layer, limit)


class RoomyLayer(DynamicLayer):
    """Keys and values in a buffer with room for more tokens: `DynamicLayer` copies its whole past at each token."""

    def __init__(self, layer: DynamicLayer, limit: int):
        super().__init__()
        self.limit, self.is_initialized, self.dtype, self.device = limit, True, layer.dtype, layer.device
        self.keys, self.values, self.room = layer.keys, layer.values, 0
        self._keys, self._values = layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the new states `[B, H, n, D]` behind the past ones; returns all of them."""
        start, new = self.keys.shape[-2], key_states.shape[-2]
        end = start + new
        if end > self.room:
            self.room = max(end, min(self.limit, end + end // 4 + 32))
            self._keys, self._values = (_with_room(x, self.room) for x in (self.keys, self.values))
        self._keys.narrow(2, start, new).copy_(key_states)
        self._values.narrow(2, start, new).copy_(value_states)
        self.keys, self.values = self._keys.narrow(2, 0, end), self._values.narrow(2, 0, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor):
        """Only keep these rows."""
        self._keys, self._values = (x.index_select(0, indices) for x in (self._keys, self._values))
        length = self.get_seq_length()
        self.keys, self.values = self._keys.narrow(2, 0, length), self._values.narrow(2, 0, length)


def _with_room(past: Tensor, room: int) -> Tensor:
    buffer = past.new_empty(*past.shape[:2], room, past.shape[3])
    buffer.narrow(2, 0, past.shape[2]).copy_(past)
    return buffer


class FixedLayer(DynamicLayer):
    """Keys and values in given buffers `[B, H, room, D]` that never move: a token's states are written at `slot`, and all of
    the buffer is handed to attention, whose mask says what of it there is to see."""

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor):
        super().__init__()
        self.is_initialized, self.dtype, self.device = True, keys.dtype, keys.device
        self.keys, self.values, self.slot = keys, values, slot

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the states of one token `[B, H, 1, D]`; returns the whole buffers."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values
