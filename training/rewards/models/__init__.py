"""Room of what rewards that are models share: preparing pictures, finding weights, mending image-reward."""
