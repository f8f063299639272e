"""Estimate what the configured targets cost, as CSV (``--out``) and, printed, as a table.

python -m fewstep.costs --spec SPEC --out plan.csv
"""

from __future__ import annotations

from .common.cli import parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import CostsSpec


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a bad spec.
        ValueError: networks cannot be counted, because torch is missing.
    """
    options = parser(__doc__).parse_args(argv)
    spec = read_spec(CostsSpec, options.spec)
    try:
        from .bench import estimate
    except ModuleNotFoundError as error:
        raise ValueError(
            f"networks are counted with torch, and this Python has no {error.name}: pip install -e ., "
            "or --software-deployment-method conda"
        ) from None
    lines = estimate.with_totals(estimate.estimate(spec))
    print(estimate.text_of(lines))
    write_text(options.out, estimate.csv_of(lines))


if __name__ == "__main__":
    run(main)
