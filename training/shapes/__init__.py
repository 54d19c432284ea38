"""The shapes world: the shipped base model, its pictures, prompts, rewards and demo."""
