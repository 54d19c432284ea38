"""The subcommands of `diffusion-nft` that need no trainer: a module each, with HELP, add_arguments and run."""
