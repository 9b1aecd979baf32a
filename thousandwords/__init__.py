"""thousandwords: a picture is worth a thousand words. Captioned images in, a text-to-image model out.

    model = thousandwords.load()  # the last run's, or the example model
    best = model.generate("a small red star on sand", candidates=16, seed=7)[0]

DALL-E (arXiv 2102.12092) as a library, without DVC, Prefect and MLflow: those are for `stages/` and `flows/`. The
names below come from `api.py`, which loads torch; it is imported when the first of them is used.
"""

TYPE_CHECKING = False  # for type checkers it is true; importing it would take longer than all of this file

__version__ = "0.1.0"
__all__ = ["GeneratedImage", "Model", "from_pretrained", "load"]

if TYPE_CHECKING:
    from thousandwords.api import GeneratedImage, Model, from_pretrained, load
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from thousandwords import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
