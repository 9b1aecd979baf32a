"""Images as the image tokenizer decodes them."""
