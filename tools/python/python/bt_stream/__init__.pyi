from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union
import os

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Loader"]
__version__: str
PRESETS: Tuple[str, ...]

class Batch(Tuple[NDArray[Any], ...]):
    epoch: int
    # The batch's number has the name of a tuple's method.
    index: int  # type: ignore[assignment]
    labels: NDArray[np.int64]
    samples: NDArray[np.int64]
    def __new__(cls, native: Any, views: int) -> "Batch": ...
    def __reduce__(self) -> Tuple[Any, ...]: ...

class Loader:
    def __init__(
        self,
        shards: Union[str, "os.PathLike[str]"],
        preset: str = "barlow-imagenet",
        batch_size: int = 256,
        threads: int = 0,
        seed: int = 0,
        resume: Optional[Mapping[str, Any]] = None,
        *,
        views: str = "",
        shuffle: str = "global",
        window: Tuple[int, int] = (8, 4096),
        labels: bool = False,
        layout: str = "nchw",
        dtype: str = "float32",
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
        budget_mb: int = 2048,
        on_bad: str = "skip",
        max_bad: float = 0.1,
        cache: Optional[Union[str, "os.PathLike[str]"]] = None,
        cache_size: str = "100GB",
    ) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    @property
    def samples(self) -> int: ...
    @property
    def classes(self) -> List[str]: ...
    @property
    def epoch(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> Dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def stats(self) -> Dict[str, Union[int, float]]: ...
