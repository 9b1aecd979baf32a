"""thousandwords COMMAND: generate images, inspect their tokens, compare runs, import weights; run the pipeline.

The same as python -m thousandwords. The commands are in `cli/`, each with what adds its options and what runs it.
"""

import sys

from thousandwords import __version__
from thousandwords.cli import clone, compare, generate, human_eval, import_weights, likelihood, tokens
from thousandwords.core.command_line import one_sentence, parser

COMMANDS = {  # name: what adds its options, what runs it, its help
    "generate": (generate.add_options, generate.run, "prompts in, ranked images out"),
    "tokens": (tokens.add_options, tokens.run, "show and edit the tokens of an image"),
    "likelihood": (likelihood.add_options, likelihood.run, "how likely images are under a caption"),
    "compare": (compare.add_options, compare.run, "two finished runs side by side, as a page"),
    "human-eval-sheet": (
        human_eval.add_sheet_options,
        human_eval.make_sheet,
        "a blind vote between two runs, as a page",
    ),
    "human-eval-votes": (
        human_eval.add_votes_options,
        human_eval.print_votes,
        "count the votes on a human evaluation sheet",
    ),
    "import-weights": (
        import_weights.add_options,
        import_weights.run,
        "published weights in (DALL-E, taming-transformers, LlamaGen), an image tokenizer out",
    ),
    "run": (clone.add_run_options, clone.run, "in a clone: train all models, as make run"),
    "studio": (clone.add_studio_options, clone.studio, "in a clone: the page in the browser, as make studio"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; an error that the user can fix ends it with one sentence and exit code 2."""
    arguments = parser(__doc__, prog="thousandwords")
    arguments.add_argument("--version", action="version", version=f"thousandwords {__version__}")
    subparsers = arguments.add_subparsers(
        required=True, dest="command", metavar="command", parser_class=parser
    )
    for name, (add_options, run, text) in COMMANDS.items():
        description = sys.modules[run.__module__].__doc__
        command = subparsers.add_parser(name, help=text, description=description)
        add_options(command)
        command.set_defaults(run=run)
    options = arguments.parse_args(argv)
    with one_sentence(options.command):
        options.run(options)


if __name__ == "__main__":
    main()
