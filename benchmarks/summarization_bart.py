"""summarization.py: a small BART of transformers with a tokenizer trained on text, not yet trained.

python summarization_bart.py CONFIG.json OUT TEXT...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers


def main() -> None:
    """Write the folder as `save_pretrained` does."""
    sizes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes["vocab_size"],
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train(sys.argv[3:], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    torch.manual_seed(1)
    config = transformers.BartConfig(forced_bos_token_id=0, decoder_start_token_id=2, **sizes)
    transformers.BartForConditionalGeneration(config).save_pretrained(sys.argv[2])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(sys.argv[2])


if __name__ == "__main__":
    main()
