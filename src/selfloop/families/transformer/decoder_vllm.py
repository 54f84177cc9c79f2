"""Rows drawn by vLLM (https://docs.vllm.ai) from a model in a folder of Hugging Face's form. Needs a GPU that vLLM supports.

vLLM itself was never run with this module: its tests use a small package with the same interface.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.transformer.decoder import DecodeRequest
from selfloop.rng import SPLITMIX_STEP, splitmix64

MIN_TOKENS = 16  # drawn tokens of rows that are compared: shorter ones are equal by chance
MIN_ROWS = 10  # equal rows at the same places of two calls that show equal seeds
MAX_DUPLICATES = 0.01  # share of rows without a warning
MEMORY_SHARE = 0.8  # of the GPU's memory, the rest of which torch may hold


class VllmDecoder:
    """An engine with one model. Every row has a seed of its own, derived from the stream and the row's number.

    Rows are independent draws from the model in half precision. vLLM's bits depend on its version, its kernels and the rows
    that it computes together, so that a row may differ from call to call.
    """

    def __init__(self, save: Callable[[Path, str], None], dtype: str, context: int, ctx: Context) -> None:
        import vllm

        ctx.backends["sampling"] = f"vllm {vllm.__version__} {dtype}"
        self.new_request, self.seen, self.previous = vllm.SamplingParams, set[int](), list[tuple[int, ...]]()
        with TemporaryDirectory() as folder:
            save(Path(folder), dtype)
            self.engine: Any = vllm.LLM(
                model=folder, dtype=dtype, max_model_len=context, skip_tokenizer_init=True, generation_config="vllm",
                gpu_memory_utilization=MEMORY_SHARE,
            )  # fmt: skip

    def __call__(self, request: DecodeRequest) -> Ragged:
        """The rows of a request; SpecError if vLLM draws the rows of two calls with the same random numbers."""
        s, offsets = request.sampler, request.prompts.offsets
        known = [request.prompts.values[first:end].tolist() for first, end in pairwise(offsets.tolist())]
        keys = splitmix64(np.uint64(request.random_key) + (request.numbers.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
        requests = [
            self.new_request(
                temperature=s.temperature, top_k=s.top_k or -1, top_p=s.top_p or 1.0, seed=seed, detokenize=False,
                max_tokens=request.max_tokens - len(prompt), stop_token_ids=[request.end], ignore_eos=True,
            )
            for prompt, seed in zip(known, (keys >> np.uint64(1)).tolist(), strict=True)
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": [start, *row]} for start, row in zip(request.starts.tolist(), known, strict=True)]
        outputs = self.engine.generate(prompts, requests, use_tqdm=False)
        drawn = [tuple(output.outputs[0].token_ids) for output in outputs]
        if s.temperature > 0:
            self._compare(drawn)
        rows = [np.array([*prompt, *tokens], np.uint32) for prompt, tokens in zip(known, drawn, strict=True)]
        return Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    def _compare(self, drawn: list[tuple[int, ...]]) -> None:
        """Warn of rows that repeat earlier ones; raise if a whole call repeats the one before, place by place."""
        long = [tokens for tokens in drawn if len(tokens) >= MIN_TOKENS]
        repeats = sum(a == b for a, b in zip(self.previous, drawn, strict=False) if len(a) >= MIN_TOKENS)
        neighbors = sum(a == b for a, b in pairwise(long))  # as often as other pairs, if rows are independent
        self.previous = drawn
        if repeats >= MIN_ROWS and repeats > len(long) / 2 and neighbors < len(long) / 10:
            raise SpecError(
                f"family.sampler.decoder: vllm drew {repeats} of {len(long)} rows with the random numbers of an earlier call. "
                "Set decoder to 'auto', or install another version of vllm."
            )
        n_equal = 0
        for tokens in map(hash, long):
            n_equal += tokens in self.seen
            self.seen.add(tokens)
        if n_equal > MAX_DUPLICATES * len(long):
            warnings.warn(
                f"vllm: {n_equal} of {len(long)} rows of {MIN_TOKENS} or more drawn tokens equal an earlier row "
                f"({n_equal / len(long):.1%}): the model repeats itself, or rows share random numbers",
                stacklevel=2,
            )
