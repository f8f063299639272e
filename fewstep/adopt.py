"""Check published weights against our network and store them as a model file.

    python -m fewstep.adopt --spec SPEC --asset assets/NAME.json --out model.safetensors

``--asset`` is the record that fetch wrote; the files lie in the folder beside it, assets/NAME/.
The card of the result says ``status: released``: these weights were not trained here. Weights of another
convention are converted (backbones/import_weights.py), and the card says how.
"""

from __future__ import annotations

from pathlib import Path

from .backbones.import_weights import import_weights, read_weights
from .backbones.model_file import sampling_card, save_model, versions
from .common.cli import add_sampling, parser, run
from .config import ConfigError, digest, read_spec
from .config.backbones import Imf, LightningDiT, Sd3
from .config.specs import AdoptSpec
from .data.asset_files import read_record


def main(argv: list[str] | None = None) -> None:
    """Run the stage; errors as for `read_spec`, `read_record`, `Record.verified` and `import_weights`."""
    arguments = parser(__doc__)
    arguments.add_argument("--asset", type=Path, required=True, help="record of the fetched asset")
    add_sampling(arguments)
    given = arguments.parse_args(argv)
    spec = read_spec(AdoptSpec, given.spec)
    if not isinstance(spec.backbone, LightningDiT | Sd3 | Imf):
        raise ConfigError(
            f"{given.spec}: backbone.kind: only weights of lightningdit, sd3 and imf can be adopted"
        )
    record = read_record(given.asset)
    if record.body.name != spec.asset:
        raise ConfigError(
            f"{given.asset}: is the record of {record.body.name}, but the spec asks for {spec.asset}"
        )
    path, checksum = record.verified(spec.file)
    tensors, found_under = read_weights(path)
    net, converted = import_weights(tensors, spec.backbone, path, spec.reverse, spec.new_labels)
    for change in converted:
        print(f"{path}: {change}")
    source = {"asset": spec.asset, "file": spec.file, "sha256": checksum}
    card = {
        "status": "released",
        "source": source | {"weights": found_under, "converted": converted},
        "latents": {"tokenizer": spec.tokenizer.model_dump(mode="json")},
        "sampler": spec.sampler and spec.sampler.model_dump(mode="json"),
        "spec": digest(spec),
        "code": None,
        "versions": versions(),
        **sampling_card(given.sampling),
    }
    save_model(given.out, net.state_dict(), spec.backbone, card)


if __name__ == "__main__":
    run(main)
