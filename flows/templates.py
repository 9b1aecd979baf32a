"""Text from a template of jinja2 that lies beside the module that fills it."""

from pathlib import Path

from jinja2 import Environment, StrictUndefined


def render(template: Path, **values: object) -> str:
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
