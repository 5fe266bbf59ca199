"""Two augmented views of images in tar shards, as NumPy arrays.

>>> import bt_stream
>>> loader = bt_stream.Loader("shards/train", preset="barlow-imagenet", batch_size=256, threads=8, seed=0)
>>> for view_a, view_b in loader:      # float32 [256, 3, 224, 224], normalised; one epoch
...     ...

Reading, decoding and augmenting happen in threads without the interpreter's lock; there are no worker
processes. The same seed gives the same bytes for any number of threads, and the same as `bt-stream train`.

The arrays are the loader's own memory, not copies: `torch.from_numpy(view_a)` and
`torch.from_dlpack(view_a)` share it, and the loader has it back when the last array or tensor over it is
gone. A loop that lets go of its batches never copies; who keeps many gets copies, and never waits for ever.

A loader's threads are in the process that made it. A forked child makes its own; a loop over its parent's
raises RuntimeError. Ctrl-C ends every wait, and an error or Ctrl-C costs no batch: the next loop begins with
the one that was awaited.
"""

from __future__ import annotations

import collections.abc
import operator
import threading
import typing

import numpy as np

from . import _native

__all__ = ["Batch", "Loader"]
__version__ = "0.1.0"

PRESETS = ("barlow-imagenet", "barlow-cifar", "simclr", "byol", "eval")


class Batch(tuple):
    """The views of one batch, a tuple of arrays, and what belongs to them."""

    epoch: int
    """The epoch, from 0."""
    index: int
    """The batch within the epoch, from 0."""
    labels: np.ndarray
    """Classes, int64 [n]; -1 where a sample has none."""
    samples: np.ndarray
    """Places of the samples in the set, int64 [n]."""

    def __new__(cls, native: _native.Batch, views: int) -> "Batch":
        self = super().__new__(cls, (_view(native, view) for view in range(views)))
        self.epoch, self.index = native.place
        self.labels = np.asarray(native.labels, dtype=np.int64)
        self.samples = np.asarray(native.samples, dtype=np.int64)
        return self

    def __reduce__(self):
        """For `copy` and `pickle`: arrays alone, no native memory. A shallow copy shares them, others have their own."""
        return _batch, (type(self), tuple(self), self.epoch, self.index, self.labels, self.samples)


def _batch(cls, views, epoch, index, labels, samples):
    self = tuple.__new__(cls, views)
    self.epoch, self.index, self.labels, self.samples = epoch, index, labels, samples
    return self


class _Memory:
    """One view of a native batch, which it keeps alive; what NumPy's arrays have as their base."""

    def __init__(self, native, view):
        self._native = native
        self.__array_interface__ = native.interface(view)


def _view(native, view):
    return np.asarray(_Memory(native, view))


def _whole(name, value):
    """A whole number as Python's own, which JSON takes; NumPy's are welcome."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} {value!r}: a whole number is expected") from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{name} {number}: 0 or more, of at most 64 bits")
    return number


class Loader:
    """Batches of views of the images in ``shards``, an epoch for each ``for`` loop.

    Parameters
    ----------
    shards:
        A folder, a glob, a brace list (``train-{000000..000009}.tar``) or a manifest, as `bt-stream` takes it, or
        URLs of them (``s3://``, ``gs://``, ``az://``, ``https://``); credentials come from the environment.
    preset:
        The views: ``barlow-imagenet`` (the authors'), ``barlow-cifar``, ``simclr``, ``byol``; ``eval`` gives one.
    views:
        What differs from the preset, TOML as under ``[views]`` of a configuration file, for example
        ``"both.random_resized_crop.size = 96"`` or ``"b.gaussian_blur.p = 0.5"``.
    batch_size:
        Source images of a batch, over all ranks.
    threads:
        Threads that decode and augment; 0 for one each core.
    seed:
        Decides order and views.
    shuffle:
        ``global``, ``window`` (with ``window=(shards, samples)``, for shards that can only be streamed) or ``none``.
    labels:
        Give ``((view_a, view_b), labels)``, as torchvision's ``ImageFolder`` does, instead of ``(view_a, view_b)``.
    layout:
        ``nchw`` or ``nhwc``.
    dtype:
        ``float32`` (normalised) or ``uint8`` (not).
    drop_last:
        Leave out the last batch of an epoch where it is short.
    rank, world:
        This process' share of each batch, ``batch_size / world`` images.
    budget_mb:
        Bound on batches and samples in flight, in MiB.
    on_bad, max_bad:
        ``skip`` takes another sample for one that cannot be used, up to a share of ``max_bad``; ``stop`` raises, and
        raises again in the next loop, which begins with the same batch.
    cache, cache_size:
        A folder where shards behind URLs are kept, and what the files in it may take together (``"100GB"``, of 10^9
        bytes, or ``"64GiB"``, of 2^30); processes may share it.
    resume:
        What ``state_dict`` gave: the first batch is the one after the last that was yielded then.

    Raises
    ------
    ValueError
        For a setting that cannot be met, OSError for shards that cannot be read, RuntimeError for bad data.
    """

    def __init__(self, shards, preset="barlow-imagenet", batch_size=256, threads=0, seed=0, resume=None, *,
                 views="", shuffle="global", window=(8, 4096), labels=False, layout="nchw", dtype="float32",
                 drop_last=True, rank=0, world=1, budget_mb=2048, on_bad="skip", max_bad=0.1,
                 cache=None, cache_size="100GB"):
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}: {', '.join(PRESETS)}")
        batch_size, seed = _whole("batch_size", batch_size), _whole("seed", seed)
        window = tuple(_whole("window", part) for part in window)
        drop_last = bool(drop_last)
        self._native = _native.Loader(
            str(shards), views=f'preset = "{preset}"\n{views}', batch_size=batch_size,
            threads=_whole("threads", threads), seed=seed, shuffle=shuffle, window=window, layout=layout, dtype=dtype,
            drop_last=drop_last, rank=_whole("rank", rank), world=_whole("world", world),
            budget_mb=_whole("budget_mb", budget_mb), on_bad=on_bad, max_bad=max_bad, cache=cache,
            cache_size=cache_size)
        self._labels = labels
        # What the order rests on, as JSON gives it back. Not rank and world: a position is one of all ranks.
        self._identity = {
            "seed": seed, "batch_size": batch_size, "samples": self._native.samples, "shuffle": shuffle,
            "window": list(window) if shuffle == "window" else None, "drop_last": drop_last}
        self._next = (0, 0)
        self._stream = None
        self._taking = threading.Lock()
        if resume is not None:
            self.load_state_dict(resume)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._native.batches

    @property
    def samples(self) -> int:
        """Samples of the set."""
        return self._native.samples

    @property
    def classes(self) -> typing.List[str]:
        """Names of the classes, where a manifest lists them."""
        return self._native.classes

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._next[0]

    def set_epoch(self, epoch: int) -> None:
        """Makes the first batch of ``epoch`` the next one, as ``DistributedSampler.set_epoch`` does; nothing
        happens where it is, or where that epoch has begun."""
        epoch = _whole("epoch", epoch)
        if epoch != self._next[0]:
            self._next, self._stream = (epoch, 0), None

    def _after(self, epoch, batches):
        """The position that so many batches of ``epoch`` lead to."""
        return (epoch, batches) if batches < len(self) else (epoch + 1, 0)

    def __iter__(self):
        """The rest of the present epoch; the next loop goes on with the next epoch, which is being loaded already."""
        epoch = self._next[0]
        while self._next[0] == epoch:
            batch = self._take()
            yield (batch, batch.labels) if self._labels else batch
            # The loop's variable is all that should keep it.
            del batch

    def _take(self):
        # Before anything else: who is refused leaves the other thread's stream as it is.
        if not self._taking.acquire(blocking=False):
            raise RuntimeError("another thread waits for this loader's batch: a loader each")
        try:
            if self._stream is None:
                self._stream = self._native.start(*self._next)
            batch = Batch(self._stream.next(), self._native.spec[2])
            self._next = self._after(batch.epoch, batch.index + 1)
            return batch
        except BaseException:
            # A stream ends with its first error. Another one begins with the same batch.
            self._stream = None
            raise
        finally:
            self._taking.release()

    def state_dict(self) -> dict:
        """Where the loader is: the position of the batch after the last one that was yielded."""
        return {"epoch": self._next[0], "batch": self._next[1], **self._identity}

    def load_state_dict(self, state: dict) -> None:
        """Goes to where ``state`` was taken, with threads that begin there.

        Raises
        ------
        ValueError
            When it was taken of another order: another seed, batch size, number of samples, shuffle, window or
            drop_last; or when it does not tell. When an epoch has fewer batches than it says, or when what it tells
            is no number.
        """
        if not isinstance(state, collections.abc.Mapping):
            raise ValueError(f"the state is a {type(state).__name__}, no dict")
        for key in ("epoch", "batch"):
            if key not in state:
                raise ValueError(f"the state does not tell its {key}")
        for key, own in self._identity.items():
            if key not in state:
                raise ValueError(f"the state does not tell its {key}, this loader has {own}")
            theirs = list(state[key]) if isinstance(state[key], tuple) else state[key]
            if theirs != own:
                raise ValueError(f"the state is of {key} {theirs}, this loader has {own}")
        try:
            epoch, batch = _whole("epoch", state["epoch"]), _whole("batch", state["batch"])
        except TypeError as error:
            raise ValueError(f"the state's {error}") from None
        if not 0 <= batch <= len(self):
            raise ValueError(f"the state is of batch {batch}, an epoch of this loader has {len(self)}")
        self._next, self._stream = self._after(epoch, batch), None

    def stats(self) -> dict:
        """Seconds by stage, added up over threads, and counts, since the stream was started."""
        stream = self._stream
        return {} if stream is None else stream.stats()
