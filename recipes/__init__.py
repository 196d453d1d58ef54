"""Settings of training, which `vpvae train` finds by their names."""
