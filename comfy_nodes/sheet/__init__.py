"""Room of the contact sheet: which pictures are drawn, which of them share a batch, and how they are laid out."""
