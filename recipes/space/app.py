"""The page of `vpvae app` as a Space. `vpvae push-space` writes the tokenizers that it is given into the next line."""

TOKENIZERS = ["OWNER/NAME"]  # hub ids, or folders beside this file

if __name__ == "__main__":
    from vpvae_hf.app.launch import launch

    launch(TOKENIZERS)
