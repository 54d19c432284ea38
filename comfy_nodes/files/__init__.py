"""Room of files beside the models: what is written into pictures, ratings of them, and
adapters that are fetched from the Hub."""
