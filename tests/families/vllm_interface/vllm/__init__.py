"""The part of vLLM's interface that `VllmDecoder` calls, on transformers: one row after the other, on a processor."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

__version__ = "0"
IGNORES_SEEDS = False  # True: every call begins with the same random numbers


@dataclass
class SamplingParams:
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int
    stop_token_ids: list
    ignore_eos: bool
    detokenize: bool


class LLM:
    def __init__(self, model, *, dtype, max_model_len, skip_tokenizer_init, generation_config, gpu_memory_utilization):
        self.network = AutoModelForCausalLM.from_pretrained(model).float().eval()
        assert max_model_len <= self.network.config.max_position_embeddings
        self.limit = max_model_len

    def generate(self, prompts, params, use_tqdm=True):
        generators = [torch.Generator().manual_seed(i if IGNORES_SEEDS else p.seed) for i, p in enumerate(params)]
        tokens = [prompt["prompt_token_ids"] for prompt in prompts]
        rows = map(self._row, tokens, params, generators)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=row)]) for row in rows]

    @torch.inference_mode()
    def _row(self, tokens, params, generator):
        assert len(tokens) + params.max_tokens <= self.limit
        assert params.top_p == 1.0
        assert params.top_k == -1
        drawn = []
        while len(drawn) < params.max_tokens and not set(drawn[-1:]) & set(params.stop_token_ids):
            logits = self.network(torch.tensor([[*tokens, *drawn]])).logits[0, -1]
            p = (logits / params.temperature).softmax(-1) if params.temperature else logits.ge(logits.max()).float()
            drawn.append(int(torch.multinomial(p, 1, generator=generator)))
        return drawn
