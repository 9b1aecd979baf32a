"""thousandwords: a picture is worth a thousand words. Captioned images in, a text-to-image model out.

A DALL-E (arXiv 2102.12092) as a library: tensors and rows in, tensors and rows out. It knows nothing of DVC, Prefect or
MLflow; `stages/` and `flows/` do. `thousandwords.package.load_package(folder)` draws from a trained model.
"""
