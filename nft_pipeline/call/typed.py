"""What a guided pipeline has, for type checkers and editors: at run time its class is made from the stock one.

Checkers cannot know which pipeline class of diffusers is behind a guided pipeline, so what many of them have is listed
here, all as Any. diffusers' own base class answers to any name; here that is switched off, so that a typo is an error.
For what only few pipelines have, annotate: `pipe: Any = DiffusionNFTPipeline.from_pretrained(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

if TYPE_CHECKING:
    # Not `from diffusers`: there mypy meets the stand-in first that diffusers has for a machine without torch.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = SupportsFloat | Sequence[SupportsFloat] | NDArray[Any] | Tensor
    Strength = Numbers | Mapping[str, Numbers]

    class StockPipeline(DiffusionPipeline):
        """What most pipelines of diffusers have, and the call with the guidance arguments."""

        __getattr__: None  # type: ignore[misc]

        def __call__(
            self,
            *args: Any,
            nft_strength: Strength = 1.0,
            nft_beta: Strength | None = None,
            nft_rate: Strength | None = None,
            nft_law: str | Mapping[str, str] | None = None,
            nft_interval: tuple[float, float] | Mapping[str, tuple[float, float]] = (0.0, 1.0),
            nft_schedule: Callable[[float], float] | Sequence[tuple[float, float]] | None = None,
            nft_guide: str = "both",
            nft_cap: SupportsFloat | None = None,
            nft_mode: str | None = None,
            nft_combine: str = "all",
            nft_candidates: int = 1,
            nft_choose_after: int | None = None,
            **kwargs: Any,
        ) -> Any:
            """As `help(pipe.__call__)` says of the pipeline at hand."""

        # Components.
        audio_vae: Any
        controlnet: Any
        feature_extractor: Any
        guider: Any
        image_encoder: Any
        image_processor: Any
        motion_adapter: Any
        processor: Any
        safety_checker: Any
        scheduler: Any
        text_encoder: Any
        text_encoder_2: Any
        text_encoder_3: Any
        tokenizer: Any
        tokenizer_2: Any
        tokenizer_3: Any
        transformer: Any
        transformer_2: Any
        unet: Any
        vae: Any
        vae_scale_factor: Any
        video_processor: Any
        vocoder: Any

        # LoRAs.
        delete_adapters: Any
        disable_lora: Any
        enable_lora: Any
        enable_lora_hotswap: Any
        fuse_lora: Any
        fused_loras: Any
        get_active_adapters: Any
        get_list_adapters: Any
        load_lora_into_text_encoder: Any
        load_lora_into_transformer: Any
        load_lora_into_unet: Any
        load_lora_weights: Any
        lora_scale: Any
        lora_state_dict: Any
        num_fused_loras: Any
        pack_weights: Any
        save_lora_weights: Any
        set_adapters: Any
        set_lora_device: Any
        text_encoder_name: Any
        transformer_name: Any
        unet_name: Any
        unfuse_lora: Any
        unload_lora_weights: Any
        write_lora_layers: Any

        # Other things that are loaded or switched.
        disable_freeu: Any
        enable_freeu: Any
        from_single_file: Any
        fuse_qkv_projections: Any
        load_ip_adapter: Any
        load_textual_inversion: Any
        maybe_convert_prompt: Any
        set_ip_adapter_scale: Any
        unfuse_qkv_projections: Any
        unload_ip_adapter: Any
        unload_textual_inversion: Any

        # Steps of a call.
        check_image: Any
        check_inputs: Any
        decode_latents: Any
        encode_image: Any
        encode_prompt: Any
        get_guidance_scale_embedding: Any
        get_timesteps: Any
        prepare_extra_step_kwargs: Any
        prepare_image: Any
        prepare_image_latents: Any
        prepare_ip_adapter_image_embeds: Any
        prepare_latents: Any
        prepare_mask_latents: Any
        run_safety_checker: Any
        upcast_vae: Any

        # Facts about a call, for callbacks.
        attention_kwargs: Any
        clip_skip: Any
        cross_attention_kwargs: Any
        current_timestep: Any
        do_classifier_free_guidance: Any
        guidance_rescale: Any
        guidance_scale: Any
        interrupt: Any
        joint_attention_kwargs: Any
        num_timesteps: Any

else:
    StockPipeline = object
