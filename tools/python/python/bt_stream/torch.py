"""The loader as a ``torch.utils.data.IterableDataset``.

>>> data = bt_stream.torch.PairDataset(bt_stream.Loader("shards/train", batch_size=256))
>>> loader = torch.utils.data.DataLoader(data, batch_size=None, pin_memory=True)
>>> for view_a, view_b in loader: ...

The threads are the loader's own: ``num_workers`` stays 0. Tensors share the loader's memory; with
``pin_memory`` PyTorch copies them into pinned memory, in the thread that trains, since there are no workers: each
step waits for the copy of its batch, and the next ones are being loaded meanwhile.
"""

from __future__ import annotations

import torch
from torch.utils.data import IterableDataset, get_worker_info

from . import Loader


def tensors(batch):
    """The tensors over a batch's arrays, without a copy: of ``(a, b)`` or of ``((a, b), labels)``."""
    if isinstance(batch, (tuple, list)):
        return tuple(tensors(part) for part in batch)
    return torch.from_numpy(batch)


class PairDataset(IterableDataset):
    """Batches of tensors from a :class:`bt_stream.Loader`, an epoch for each loop."""

    def __init__(self, loader: Loader):
        super().__init__()
        self.loader = loader

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.loader)

    def __iter__(self):
        if get_worker_info() is not None:
            raise RuntimeError("bt_stream has threads of its own: use num_workers=0")
        return map(tensors, self.loader)

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`bt_stream.Loader.set_epoch`."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict:
        """See :meth:`bt_stream.Loader.state_dict`. It may be taken after any batch: without workers PyTorch takes
        none ahead, with ``pin_memory`` neither."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """See :meth:`bt_stream.Loader.load_state_dict`."""
        self.loader.load_state_dict(state)
