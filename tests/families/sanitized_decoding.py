"""A process that decodes with a decoder built with sanitizers, which end it on a fault. It is fast because it loads no torch.

python sanitized_decoding.py FOLDER, with <name>.json (a TransformerConfig) and <name>.npz (a model) for every case
"""

import json
import sys
from pathlib import Path

import numpy as np

from selfloop.columns import Ragged
from selfloop.families.transformer import decoder_c
from selfloop.families.transformer.decoder import DecodeRequest, TransformerConfig, build_decoder_weights
from selfloop.families.transformer.decoder_c import try_c_decoder
from selfloop.families.transformer.text_sampler import TextSampler

FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
PROMPTS = [[7, 8, 9], [], [3], list(range(2, 14)), [], [2] * 23]


def main(folder):
    decoder_c._passes_test = lambda config, path: True
    decoder_c.FLAGS = (*decoder_c.FLAGS, *FLAGS)
    values = np.concatenate([np.array(prompt, np.uint16) for prompt in PROMPTS])
    prompts = Ragged(values, np.cumsum([0, *map(len, PROMPTS)]))
    rows, starts = np.arange(len(PROMPTS)), np.array([0, 0, 11, 0, 12, 0])
    for file in sorted(folder.glob("*.json")):
        config = TransformerConfig(**json.loads(file.read_text()))
        decoder = try_c_decoder(config, build_decoder_weights(config, dict(np.load(file.with_suffix(".npz")))))
        assert decoder is not None
        for settings in ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8, "top_k": 9}, {"batch_size": 1}):
            request = DecodeRequest(rows + 5, starts, prompts, 2**63 + 5, 1, config.context, TextSampler(**settings))
            tokens, lengths = decoder.decode(request, 2)
            assert (lengths >= 1).all()
            assert tokens[5, :23].tolist() == PROMPTS[5]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
