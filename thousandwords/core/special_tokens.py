"""Values that stand for no token: padding, and an image token that is still to be sampled."""

PAD = -1  # a text position after the end of the caption
UNKNOWN = -1  # an image position whose token is not fixed: it will be sampled
