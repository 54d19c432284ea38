"""Adapters: what one holds, how it is read and written, which base model it fits. The door: `nft_pipeline.adapter`."""
