"""The tokenizer of VQGAN: a convolutional trunk with attention, and a learned codebook."""
