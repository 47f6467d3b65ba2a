"""The processes of one run: who does which share of the work, and how the shares come together. One process is the usual case.

Each knows the whole batch and works on every n-th item of it; what came out is gathered in the order of the items, and
gradients are summed. With FSDP each holds a share of the weights, too (`sharding`).
"""

import os
from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from dphrl_lite.engine import sharding


class Processes:
    """This process among those that `accelerate launch` started: its `index`, their `count`, whether it is the `main` one that
    writes, and whether the weights are `sharded`."""

    def __init__(self, device: torch.device):
        launched = "WORLD_SIZE" in os.environ  # asked for the CPU, accelerate would keep the whole session there
        self.sharded = sharding.asked()
        on_cpu = device.type == "cpu" and not (self.sharded and torch.cuda.is_available())
        self.state = PartialState(cpu=launched and on_cpu)
        self.index, self.count = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process

    def map(self, work: Callable[[list], list], items: Sequence) -> list:
        """What `work` makes of `items`, a result for each: every process does its share, and gets to know all."""
        mine = range(self.index, len(items), self.count)
        results = work([items[i] for i in mine])
        pairs = gather_object(list(zip(mine, results, strict=True)))
        return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]

    def gather(self, values: list) -> list:
        """The values of all processes, those of the first one first. Tensors must be on the CPU: what is sent from a GPU is
        opened on that same GPU by the other process, where it may not be seen, or takes memory for one more context."""
        return gather_object(values)

    def shard(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model`, spread over all processes in place if weights are sharded."""
        return sharding.shard(model, self.state.device) if self.sharded else model

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]):
        """Let each parameter have the sum of all processes' gradients; no gradient counts as 0."""
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if self.count > 1 and not self.sharded:
                torch.distributed.all_reduce(p.grad)
