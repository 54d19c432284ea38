"""The shapes world: the pictures, prompts and scores behind the shipped base model, and how it was trained."""
