"""Scored pictures: sampled pools, folders of a person's own, and rewards turned into r in [0, 1]."""
