"""The order of the data, the same in a resumed run as in an uninterrupted one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """A shuffled `RepeatSampler` whose epoch k is the same in a resumed run as in an uninterrupted one.

    TRL's sampler draws one permutation per epoch from a generator that a resumed process starts afresh.
    """

    def __init__(self, sampler: Any, *, completed_epochs: Callable[[], int]):
        self.sampler = sampler
        self.completed_epochs = completed_epochs

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.completed_epochs()):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
