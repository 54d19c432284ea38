"""Room of files beside the models: what is written into pictures, and adapters that are fetched from the Hub."""
