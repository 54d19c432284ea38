"""What the engine must know about each class of denoiser, one file for each family in the room `known`."""
