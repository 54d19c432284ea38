"""Room of the Hugging Face Hub: writing an adapter's card, pushing and pulling it will live here; nothing does yet."""
