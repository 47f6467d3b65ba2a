"""dphrl_lite: Diversity-Preserving Hybrid RL, small enough to read and real enough to train with.

The rooms, from the ground floor up: `divergences` and `passk` (mathematics); `toys`, `worlds`, `estimators`, `pitfalls`
and `bandits` (the same, where everything can be computed exactly); `tasks` (verifiable problems); `models`, `sampling` with
`kv_cache`, `logprobs` (language models); `objectives`, `presampling`, `training` with `preflight`, `batches`, `metrics` and
`tracking` (the method), `checkpoint` under all that writes, and `sharding` under all that holds weights; `quantisation`,
`lowrank`, `memory` with `budget`, and `costs` (what a large model takes); `evaluation` and `export` (what becomes of a
policy), `experiments` with `frontier` and `conclusions`; `figures`, `widgets`, `settings`, `cli`, `doctor` (what people
look at and type), `install` and `book` (notebooks where the kit is not, and without Python). A room only imports rooms below it.
"""

__version__ = "0.1.0"
