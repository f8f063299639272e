"""Images, tokenizers and latent shards. Importing this package needs no torch."""
