"""thousandwords: a picture is worth a thousand words. Captioned images in, a text-to-image model out.

DALL-E (arXiv 2102.12092) as a library: tensors and rows in, tensors and rows out. It does not depend on DVC,
Prefect or MLflow; `stages/` and `flows/` do. `thousandwords.inference.package.load_package(folder)` loads a
trained model that generates images.
"""
