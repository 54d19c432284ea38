"""More liked pictures for the same forwards: alpha chooses among noises, early in the call or along the way."""
