"""In the place of the tiny text encoders and tokenizers that diffusers' own tests take from the Hub: others, as tiny.

Within `stand_ins()` the loaders of transformers make them here, of random weights, and nothing is fetched.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffusers
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

_MARKS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)
_T5 = {"vocab_size": 1103, "d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 1, "num_heads": 4}
_PLAIN = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_SIGHT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
_CONFIGS: dict[str, Any] = {
    "T5EncoderModel": lambda: transformers.T5Config(**_T5),
    "UMT5EncoderModel": lambda: transformers.UMT5Config(**_T5),
    "BertModel": lambda: transformers.BertConfig(
        vocab_size=1103, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=37
    ),
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(vocab_size=1103, **_PLAIN),
    "Gemma3ForConditionalGeneration": lambda: transformers.Gemma3Config(
        text_config={**_PLAIN, "vocab_size": 1103, "head_dim": 8, "hidden_size": 32},
        vision_config={**_SIGHT, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
        mm_tokens_per_image=4,
    ),
    "Qwen2VLForConditionalGeneration": lambda: transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 152064,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            **_PLAIN,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1},
    ),
    "Qwen3VLForConditionalGeneration": lambda: transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 152064,
            "head_dim": 8,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            **_PLAIN,
        },
        vision_config={**_SIGHT, "depth": 1, "num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0]},
    ),
    "SiglipVisionModel": lambda: transformers.SiglipVisionConfig(
        **_SIGHT, num_hidden_layers=1, image_size=30, patch_size=2
    ),
    "DPTForDepthEstimation": lambda: transformers.DPTConfig(
        **_SIGHT,
        num_hidden_layers=2,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    ),
}


def tokenizer(length: int = 77) -> PreTrainedTokenizerFast:
    """Spells a text letter by letter, and knows the marks of Qwen's templates."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{chr(i): i - 28 for i in range(32, 127)}, **_MARKS}
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    letters.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(_MARKS),
        model_max_length=length,
        chat_template=_CHAT,
    )
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    return made


def _tokenizer(cls: Any, *_: Any, model_max_length: int = 77, **__: Any) -> Any:
    return tokenizer(model_max_length)


def _processor(cls: Any, *_: Any, **__: Any) -> Any:
    kind = transformers.Qwen2VLProcessor if cls is transformers.AutoProcessor else cls
    sizes: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    images = transformers.Qwen2VLImageProcessor(**sizes)
    names = kind.__init__.__code__.co_varnames
    videos = {"video_processor": transformers.Qwen2VLVideoProcessor()} if "video_processor" in names else {}
    return kind(image_processor=images, tokenizer=tokenizer(), chat_template=_CHAT, **videos)


def _model(cls: Any, *_: Any, **__: Any) -> Any:
    torch.manual_seed(0)
    return cls(_CONFIGS[cls.__name__]()).eval()


def _config(cls: Any, *_: Any, **__: Any) -> Any:
    return transformers.T5Config(**_T5)


def _with_defaults(cls: Any, *_: Any, **__: Any) -> Any:
    return cls(size={"height": 30, "width": 30}) if "Siglip" in cls.__name__ else cls()


def _clap(cls: Any, text_config: Any, audio_config: Any, **kwargs: Any) -> Any:
    return cls(text_config=text_config.to_dict(), audio_config=audio_config.to_dict(), **kwargs)


def _narrow(init: Any) -> Any:
    """A constructor of VAEs that makes none of full width, as two of the tests do."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **widths: Any) -> None:
        wide = {name: 16 for name in ("base_dim", "decoder_base_dim") if (widths.get(name) or 0) > 32}
        init(self, *args, **{**widths, **wide})

    return __init__


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, what is asked of the Hub is made here. Raises KeyError for a model nobody stands in for."""
    loaders = {
        transformers.PreTrainedTokenizerBase: _tokenizer,
        transformers.AutoTokenizer: _tokenizer,
        transformers.ProcessorMixin: _processor,
        transformers.AutoProcessor: _processor,
        transformers.PreTrainedModel: _model,
        transformers.AutoConfig: _config,
        transformers.FeatureExtractionMixin: _with_defaults,
        transformers.ImageProcessingMixin: _with_defaults,
    }
    with contextlib.ExitStack() as stack:
        for kind, made in loaders.items():
            stack.enter_context(mock.patch.object(kind, "from_pretrained", classmethod(made)))
        joined = "from_text_audio_configs"  # of transformers 4
        stack.enter_context(mock.patch.object(transformers.ClapConfig, joined, classmethod(_clap), create=True))
        vae = diffusers.AutoencoderKLWan
        stack.enter_context(mock.patch.object(vae, "__init__", _narrow(vae.__init__)))
        yield
