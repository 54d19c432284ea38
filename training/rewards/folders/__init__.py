"""Folders of pictures: scored by rewards, rated by a person."""
