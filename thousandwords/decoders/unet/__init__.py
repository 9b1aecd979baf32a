"""A U-Net that adds what the tokenizer's decoder leaves out."""
