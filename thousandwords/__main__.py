"""thousandwords COMMAND: generate images, inspect their tokens, compare runs, import weights; run the pipeline.

The same as python -m thousandwords. The commands are in `cli/`, each with what adds its options and what runs it.
"""

import importlib
import sys
from argparse import ArgumentParser

from thousandwords import __version__
from thousandwords.core.command_line import one_sentence, parser

COMMANDS = {  # name: its module in cli/, what adds its options, what runs it, its help
    "generate": ("generate", "add_options", "run", "prompts in, ranked images out"),
    "tokens": ("tokens", "add_options", "run", "show and edit the tokens of an image"),
    "likelihood": ("likelihood", "add_options", "run", "how likely images are under a caption"),
    "caption": ("caption", "add_options", "run", "captions of images, of a package with a captioner"),
    "compare": ("compare", "add_options", "run", "two finished runs side by side, as a page"),
    "human-eval-sheet": (
        "human_eval",
        "add_sheet_options",
        "make_sheet",
        "a blind vote between two runs, as a page",
    ),
    "human-eval-votes": (
        "human_eval",
        "add_votes_options",
        "print_votes",
        "count the votes on a human evaluation sheet",
    ),
    "import-weights": (
        "import_weights",
        "add_options",
        "run",
        "published weights in (DALL-E, taming-transformers, LlamaGen), an image tokenizer out",
    ),
    "run": ("clone", "add_run_options", "run", "in a clone: train all models, as make run"),
    "studio": (
        "clone",
        "add_studio_options",
        "studio",
        "in a clone: the page in the browser, as make studio",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; an error that the user can fix ends it with one sentence and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(__doc__, prog="thousandwords")
    arguments.add_argument("--version", action="version", version=f"thousandwords {__version__}")
    subparsers = arguments.add_subparsers(
        required=True, dest="command", metavar="command", parser_class=parser
    )
    for name, (_, _, _, text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text)
        if name in argv:  # only its module is imported: torch takes seconds
            _complete(command, name)
    options = arguments.parse_args(argv)
    with one_sentence(options.command):
        options.run(options)


def _complete(command: ArgumentParser, name: str) -> None:
    """Give the parser of a command its description, its options and what runs it."""
    module_name, add_options, run, _ = COMMANDS[name]
    module = importlib.import_module(f"thousandwords.cli.{module_name}")
    command.description = module.__doc__
    getattr(module, add_options)(command)
    command.set_defaults(run=getattr(module, run))


if __name__ == "__main__":
    main()
