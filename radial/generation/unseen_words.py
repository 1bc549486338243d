"""Words of a prompt that a model's text encoder does not read: it takes so many tokens and leaves the rest out."""

from __future__ import annotations

from radial.loading.load import LoadedModel
from radial.request import GenerationRequest


def unseen_words(request: GenerationRequest, model: LoadedModel) -> tuple[str, ...]:
    """A note on each prompt of a request that is longer than the text encoder reads."""
    from transformers import PreTrainedTokenizerBase

    tokenizer, most = getattr(model.pipe, "tokenizer", None), model.spec.max_sequence_length
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return ()
    notes = []
    own = request.negative_prompt if request.negative_prompt != model.spec.negative_prompt else None
    prompts = [("prompt", model.spec.words_for(prompt)) for prompt in request.prompts]
    for what, text in (*prompts, ("negative prompt", own)):
        tokens = tokenizer(text or "", truncation=False, verbose=False).input_ids
        if len(tokens) > most:
            left_out = tokenizer.decode(tokens[most - 1 :], skip_special_tokens=True).strip()
            shown = left_out if len(left_out) <= 80 else f"{left_out[:80]}..."
            notes.append(f"the text encoder reads {most} tokens of the {what}, and not its end: {shown!r}")
    return tuple(notes)
