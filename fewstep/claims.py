"""Check the papers' claims on measured numbers, seed by seed."""

from __future__ import annotations

from .common.cli import metrics_parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import ClaimsSpec
from .reporting.claim_checks import check_claims, claims_csv
from .reporting.markdown import claims_markdown
from .reporting.metrics import load_metrics


def main(argv: list[str] | None = None) -> None:
    """Read spec and metrics, write CSV (``--out``) and Markdown."""
    options = metrics_parser(__doc__).parse_args(argv)
    spec = read_spec(ClaimsSpec, options.spec)
    claims = check_claims(spec, load_metrics(options.metrics))
    if options.markdown:
        write_text(options.markdown, claims_markdown(spec, claims))
    write_text(options.out, claims_csv(claims))


if __name__ == "__main__":
    run(main)
