"""A vision language model of transformers' real classes, small and with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", ":", "ASSISTANT", "describe", "the", "clip", "a", "red",
         "circle", "square", "rises", "falls", "slowly", "blue", "over", "water")  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def build_captioner(folder: Path) -> Path:
    """LLaVA, saved as its authors save it; its image processor needs no torchvision."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(**small, vocab_size=len(WORDS), max_position_embeddings=512, pad_token_id=0,
                                bos_token_id=1, eos_token_id=2),
        image_token_id=WORDS.index("<image>"), vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # random weights of the usual size say the same of every picture
        for parameter in model.parameters():
            parameter.mul_(6)
        model.lm_head.weight[: WORDS.index("describe")] = 0  # no signs of the template
    model.save_pretrained(folder)
    return folder
