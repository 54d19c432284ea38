"""What a guider of ours needs beside another guider of diffusers: the contract passed on, and hooks for one forward."""
