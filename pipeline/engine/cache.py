"""A KV cache whose rows come and go: buffers grow ahead, finished rows are taken out, new rows join."""

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

_AHEAD = 64  # positions allocated at a time, so that a decode step writes one position instead of copying all


class _RowLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows x heads x length x dim] as views into larger buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._set(key_states[:, :, :0], value_states[:, :, :0])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._key_buffer.shape[2]:
            self._grow(end + _AHEAD)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def keep(self, rows: torch.Tensor, cut: int) -> None:
        """Keep some rows, without their first ``cut`` positions (padding of all of them)."""
        self._set(self.keys[rows, :, cut:], self.values[rows, :, cut:])

    def join(self, other: "_RowLayer") -> None:
        """Append the rows of another layer; the shorter one is padded on the left."""
        length = max(self.keys.shape[2], other.keys.shape[2])
        keys = torch.cat([_left_padded(self.keys, length), _left_padded(other.keys, length)])
        values = torch.cat([_left_padded(self.values, length), _left_padded(other.values, length)])
        self._set(keys, values)

    def _set(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._key_buffer, self._value_buffer = keys, values
        self.keys, self.values = keys, values

    def _grow(self, capacity: int) -> None:
        rows, heads, length, _ = self.keys.shape
        for name, held in (("_key_buffer", self.keys), ("_value_buffer", self.values)):
            buffer = held.new_empty(rows, heads, capacity, held.shape[3])
            buffer[:, :, :length] = held
            setattr(self, name, buffer)


class RowCache(Cache):  # type: ignore[misc]
    """The KV cache of a batch in which rows are dropped and added; prompts are padded on the left."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_RowLayer)

    def keep(self, rows: torch.Tensor, cut: int) -> None:
        """Keep some rows, without their first ``cut`` positions."""
        for layer in self.layers:
            layer.keep(rows, cut)

    def join(self, other: "RowCache") -> None:
        """Append the rows of another cache."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)


def _left_padded(held: torch.Tensor, length: int) -> torch.Tensor:
    return pad(held, (0, 0, length - held.shape[2], 0))
