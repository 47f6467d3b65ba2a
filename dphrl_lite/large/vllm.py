"""Answers drawn by vLLM, in place of `sampling.generate`: for pre-sampling and evaluating a large model, which is mostly drawing.

vLLM needs a GPU and versions of its own (extra `[vllm]`, docs/scale.md). Its kernels round in another way than the training
forward, so its log-probs are near the ones that training needs, not equal to them: both trainers compare them before the first
step and compute them again. What is drawn follows from the seeds; on one machine with one version it is the same again, up to
how vLLM fills its batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dphrl_lite import models
from dphrl_lite.models import Policy
from dphrl_lite.sampling import Completion, check_settings

SEEDS = 2**62  # vLLM adds the number of the answer to a seed, and keeps the sum in 63 bits


def load(name: str | Path, *, nf4: bool = False, **llm) -> Policy:
    """A policy that vLLM draws for, to be sampled and evaluated like any other.

    The weights are read a second time, on the CPU: they, the tokenizer and the words that end an answer are in the manifest.

    Args:
        name: as `models.load` takes it. The folder of a LoRA adapter is drawn from with its unquantised base.
        nf4: refused: vLLM's four-bit kernels are not those that train.
        **llm: further settings of `vllm.LLM`, such as `tensor_parallel_size`, `max_model_len`, `gpu_memory_utilization`.

    Raises:
        ValueError: 4-bit weights. ImportError: no vLLM, with what to do.
    """
    plan = models.plan_load(name, nf4=nf4)
    if plan.profile.nf4:
        raise ValueError(
            f"{name} is held in 4 bits, which vLLM computes in another way than training does: its answers would come from "
            "another model. Draw with the kit's sampler (--engine kit), or take a model that is not quantised"
        )
    engine = engine_of(plan.profile.source, plan.adapter, plan.profile.lora_rank if plan.adapter else 0, **llm)
    policy = models.load(name, device="cpu", dtype=plan.dtype)
    policy.sampler = engine
    policy.reasons.append(f"answers drawn by vLLM {engine.version}")
    return policy


def engine_of(source: str, adapter: str | None = None, lora_rank: int = 0, **llm) -> "Engine":
    """vLLM with a model, and with its adapter if it has one. Raises `ImportError` where vLLM is missing."""
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            "vllm is needed for --engine vllm, in an environment of its own: pip install -e '.[vllm]' (docs/scale.md)"
        ) from error
    lora = {"enable_lora": True, "max_lora_rank": lora_rank} if adapter else {}
    # raw: of the full softmax, before temperature and top-p, which is what u = policy / reference is made of
    return Engine(vllm.LLM(source, logprobs_mode="raw_logprobs", **lora | llm), vllm.__version__, adapter)


@dataclass(frozen=True)
class Engine:
    """Draws as `sampling.generate` does: the same arguments, the same result."""

    llm: object = field(repr=False)
    version: str
    adapter: str | None = None

    def identity(self) -> dict[str, str]:
        """What a manifest says of it: answers of another sampler are another run."""
        return {"sampler": f"vllm {self.version}"}

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        samples: int,
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        training_temperature: float = 1.0,
    ) -> list[list[Completion]]:
        """`sampling.generate`, whose docstring says what comes in and out.

        `logp_sampling` is NaN where temperature or top-p make it another number than `logp`: vLLM tells one of the two.
        """
        import vllm

        check_settings(samples, max_new_tokens, temperature, top_p, training_temperature)
        if training_temperature != 1:
            raise ValueError(f"vLLM tells log-probs at temperature 1; training_temperature is {training_temperature:g}")
        shared = {"n": samples, "temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens, "logprobs": 0}
        shared |= {"stop_token_ids": sorted(policy.eos_ids), "detokenize": False}
        how = [vllm.SamplingParams(seed=seed % SEEDS, **shared) for seed in seeds]
        requests, lora = [{"prompt_token_ids": list(prompt)} for prompt in prompts], {}
        if self.adapter:
            from vllm.lora.request import LoRARequest

            lora["lora_request"] = LoRARequest("policy", 1, self.adapter)
        answers = self.llm.generate(requests, how, use_tqdm=False, **lora)
        return [[_completion(one, temperature, top_p) for one in answer.outputs] for answer in answers]


def _completion(output, temperature: float, top_p: float) -> Completion:
    ids = list(output.token_ids)
    logp = [float(at[token].logprob) for at, token in zip(output.logprobs, ids, strict=True)]
    other = 0.0 if temperature == 0 else float("nan")
    return Completion(ids, logp, logp if temperature == top_p == 1 else [other] * len(ids))
