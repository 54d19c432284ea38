"""Rewards over HTTP: the server, its batches, and the client that calls it."""
