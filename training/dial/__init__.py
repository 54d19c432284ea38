"""Calibrating an adapter's dial: draw at a few weights, judge, and work out what each tilt needs."""
