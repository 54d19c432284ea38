"""The dial of an adapter as it was measured: which weight a tilt needs, what it gives, and what to say about it."""
