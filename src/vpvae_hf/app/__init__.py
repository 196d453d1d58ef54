"""The page of `vpvae app`: a tokenizer to try in a browser, on this computer or as a Space of Hugging Face.

`bench` and its subclasses in `images` and `sounds` compute what is shown, `charts` draws codes; `page` and `launch`,
which need Gradio, lay the page out and serve it.
"""
