"""The studio: a page and an HTTP API in which a trained model is drawn with and looked into."""
