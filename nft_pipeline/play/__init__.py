"""A page to play with: one prompt, one noise and the dial. It needs gradio, the rest of the package does not."""
