"""Where large models are trained: DPH-RL inside TRL (`trl`), a recipe on it (`runs`), answers drawn by vLLM (`vllm`)."""
