"""What the fields of a request mean, for people: one place for the command line's help and the REST interface's
description, which say in their own words only what differs there."""

from __future__ import annotations

WORDS = {
    "prompt": "what the clip shows",
    "then": "what the clip shows next, each prompt in an equal share of the time, or from when it says: '2s: it sits'",
    "enhance": "a language model that says the prompt at more length, by hub id or folder; both prompts are kept",
    "original_prompt": "the prompt as it was written, where enhance has made another of it",
    "negative_prompt": "words to avoid; the model's own when left out",
    "height": "height in pixels",
    "width": "width in pixels",
    "num_frames": "length in frames",
    "fps": "frames a second of the file",
    "num_inference_steps": "denoising steps",
    "guidance_scale": "how strictly to follow the prompt",
    "guidance_scale_2": "the same for the second transformer",
    "guidance_start": "share of the steps before which guidance is left out, for half the time each",
    "guidance_end": "share of the steps after which it is left out",
    "true_cfg_scale": "above 1, HunyuanVideo heeds the words to avoid, in twice the time",
    "sampler": "another sampler than the model's",
    "flow_shift": "another shift of the noise schedule",
    "cache": "leave out what hardly changes from step to step: off, auto with care, fast with less",
    "decoder": "what turns latents into frames: full, or tiny for drafts",
    "batched_guidance": "both passes of guidance at once: in one call, faster for small clips, in more memory; where "
    "processes share a clip, one on each half of them",
    "image": "the image it starts from",
    "last_image": "the image it ends on",
    "extend": "the clip that it goes on from, at its last frame",
    "control_video": "the clip that it follows, instant by instant: edges, depth, poses, grey; with a mask or a "
    "strength, the clip that it makes anew",
    "face_video": "the face that it follows: a square cut out of a clip",
    "background_video": "the clip in which its figure takes another's place, where the mask is white",
    "mask": "an image or a clip, white where control_video, or background_video, is made anew; what is black stays",
    "keep_unmasked": "put what was given back where the mask is black, to the pixel, with a soft edge within its "
    "white; else it comes through the autoencoder",
    "references": "images of who or what appears in it, wherever that is",
    "strength": "how far it goes from control_video, from near 0, hardly, to 1, wholly",
    "keyframes": "images that it shows at frames, counted from 0, and back from -1",
    "image_fit": "how images and clips of another shape are fitted",
    "image_ground": "the colour under see-through parts of images, and around padded ones",
    "snap": "take the nearest size that the model can make",
    "riflex": "slow one temporal frequency, against repetition in longer clips",
    "positions": "positions along time beyond the native length: the model's own, or stretched, without any tuning",
    "seed": "the same seed gives the same clip; -1 draws one and records it",
    "num_videos": "how many clips, their seeds counting up",
    "attention": "which self-attention to use: radial, the default; adaptive, which chooses half of its blocks by what "
    "the clip holds; or dense, where every token sees every other",
    "density": "share of all blocks that adaptive attention computes; smaller is faster and less exact",
    "decay": "window of radial attention; smaller is sparser",
    "sink_frames": "leading latent frames that every token attends to",
    "variant": "the rule of the authors' code, or of the paper",
    "skip_width": "window, in tokens, under which far frames are thinned out",
    "dense_layers": "leading layers that stay dense",
    "dense_steps": "leading steps that stay dense",
    "dense_last_steps": "trailing steps that stay dense",
    "dense_every": "every so-manieth step after the leading ones is dense, too; 0 for none",
    "dense_above": "after a step whose attention is farther off than this the next is dense, as a few rows tell that "
    "are computed exactly (relative square error); progress tells it, and the recall. 0 looks at none",
    "early_density": "share of blocks that adaptive attention computes in the leading dense_steps, in place of all",
    "policy": "a file of `radial profile`, which says where dense attention counts: it chooses the layers and steps",
    "target_share": "share of attention's work that a policy may compute; 0.4 when left out",
    "target_speed": "in its place, how many times faster than dense, by what was measured on the policy's device",
    "block_size": "tokens a block of attention: 16, 32, 64, 128 or 256",
    "far_field": "what becomes of blocks that are left out: nothing (drop), one mean each (mean), or means of more "
    "blocks the farther away (pyramid)",
    "token_order": "order of tokens: raster, or columns along time, whose blocks are alike where little moves",
    "long_adapter": "beyond the native length, take the model's own adapter for that, where there is one",
    "device": "where it computes: auto, cpu, cuda or cuda:N",
    "dtype": "the numbers it computes with: auto, float32, float16 or bfloat16",
    "precision": "computing in 8 bit: eight_bit is faster and takes half the memory, on newer GPUs; eight_bit_weights "
    "takes half the memory",
    "memory": "how much of the model lies on the GPU at a time; auto takes the most that fits",
    "size": "width and height in one, such as 832x480",
    "seconds": "length in seconds, in place of frames",
    "format": "kind of file; png is a folder of frames",
    "codec": "codec of mp4 and webm",
    "crf": "quality of mp4 and webm; lower is better and larger",
    "metadata": "keep the settings in the file",
}
# What the fields of a story mean that a clip has not, or that mean something else there.
STORY_WORDS = {
    "lines": "the story's prompts in their order, each words or an object of prompt, name (of its figure), seconds, "
    "cut (the picture cuts before it), seed (of its own) and remember (pin, drop, or the number of the segment whose "
    "memory is read in its place)",
    "seconds": "of a line that does not say; a native clip's when left out",
    "remember": "what an earlier segment leaves: nothing, its last frame, the mean of its frames, less with age, or "
    "tokens that were learned for it",
    "window_frames": "latent frames before a chunk that it sees whole",
    "chunk_frames": "latent frames that are made at a time",
    "memory_frames": "latent frames that a radial memory keeps at most",
    "memory_thinning": "one token in so many is left of a last frame",
    "memory_positions": "distances that memory can have",
    "causal": "the model makes stories in chunks by itself, without an adapter that says so",
    "read_decay": "read the cache by the radial rule of this decay, not whole",
    "rectify_every": "with read_decay, write the cache by whole reads every so many chunks; 0: never",
}


def sentence(name: str, more: str = "") -> str:
    """What a field means, as a sentence; ``more`` is what is to be said behind it."""
    words = WORDS[name]
    return f"{words[0].upper()}{words[1:]}{more}."
