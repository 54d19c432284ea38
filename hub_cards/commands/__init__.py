"""The subcommands of `diffusion-nft` that share adapters: a module each, with HELP, add_arguments and run."""
