"""Captions to embeddings: encoders, the store with its manifest, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [t2i]")

from tiny_text import CAPTIONS, CLIP, LENGTH, T5_LENGTH, clip_file, encoder, sd3_folder, write_record

from fewstep import text
from fewstep.backbones import build
from fewstep.backbones.model_file import load_network, save_model
from fewstep.config import dump
from fewstep.config.settings import Dataset, Weights
from fewstep.config.specs import TextCard, TextSpec
from fewstep.config.text import PromptSet
from fewstep.data import text_encoding, text_store
from fewstep.data.text_encoders import open_text_encoder, sd3_text_parts, vocabulary, word_tokenizer
from fewstep.data.text_encoding import open_live_text
from fewstep.data.text_store import open_text, read_captions_of, read_text_manifest

Y = torch.tensor([3, -1, 0, 3, 4])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Records and model files: captions, prompts, SD3's text side with and without T5, a CLIP."""
    folder = tmp_path_factory.mktemp("text")
    scenes = folder / "scenes"
    scenes.mkdir()
    (scenes / "captions.json").write_text(json.dumps({"captions": CAPTIONS}))
    (scenes / "prompts.jsonl").write_text("".join(f'{{"prompt": "{each}"}}\n' for each in CAPTIONS[:2]))
    return {
        "captions": write_record(scenes),
        "sd3": sd3_folder(folder / "tiny-sd3"),
        "no-t5": sd3_folder(folder / "no-t5", t5=False),
        "clip": clip_file(folder / "clip.safetensors"),
    }


def spec_of(kind: str, prompts: bool = False, **given) -> TextSpec:
    count = 2 if prompts else len(CAPTIONS)
    dataset = Dataset(asset="scenes", format="scenes", resolution=32, classes=count, images=20)
    return TextSpec(
        text=TextCard(name="tiny", captions=count, encoder=encoder(kind, **given)),
        dataset=None if prompts else dataset,
        prompts=PromptSet(asset="scenes", files=["prompts.jsonl"], prompts=count) if prompts else None,
        backbone=CLIP if kind == "clip" else None,
    )


def weights_of(kind: str, files: dict[str, Path]) -> Path | None:
    return None if kind == "words" else files[kind]


def make(spec: TextSpec, files: dict[str, Path], folder: Path, weights: Path | None = None) -> Path:
    """The manifest, by the command."""
    folder.mkdir(exist_ok=True)
    path = folder / "spec.json"
    path.write_text(dump(spec), encoding="utf-8")
    weights = weights or weights_of(spec.text.encoder.kind, files)
    words = ["--encoder", *([str(weights)] if weights else [])]
    out = folder / "manifest.json"
    text.main(["--spec", str(path), "--captions", str(files["captions"]), *words, "--out", str(out)])
    return out


@pytest.fixture
def small_parts(monkeypatch):
    """Two rows a part, and no store in memory."""
    monkeypatch.setattr(text_encoding, "PART_BYTES", 5000)
    monkeypatch.setattr(text_store, "IN_MEMORY", 0)


def pipeline_embeddings(parts, caption: str, width: int | None = None):
    """What a user's pipeline gives, with a transformer where T5 is missing."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = None
    if width is not None:
        transformer = SD3Transformer2DModel(
            num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=width,
            caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=4, sample_size=4,
        )  # fmt: skip
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=None, vae=None, **parts)
    with torch.no_grad():
        context, _, pooled, _ = pipe.encode_prompt(
            caption,
            None,
            None,
            device="cpu",
            do_classifier_free_guidance=False,
            max_sequence_length=T5_LENGTH,
        )
    return context[0], pooled[0]


class TestEncoders:
    def test_words_are_numbered_in_order_behind_the_special_ones(self):
        assert vocabulary(["The dog.", "a cat, the"]) == [
            *("<pad>", "<unk>", "<s>", "</s>"),
            *(",", ".", "a", "cat", "dog", "the"),
        ]
        with pytest.raises(ValueError, match="vocabulary: begins with"):
            word_tokenizer(["a", "b"], 4)

    def test_words(self, files):
        words = open_text_encoder(encoder("words"), None, None, ["a dog", "a cat"])
        assert words("A cat, dogs").context.tolist() == [[2, 4, 5, 1, 1, 3, 0, 0]]
        assert words("").context.tolist() == [[2, 3, 0, 0, 0, 0, 0, 0]]
        assert words("a " * 20).context.tolist() == [[2, 4, 4, 4, 4, 4, 4, 3]]
        assert words.too_long(["a " * 6, "a " * 7]) == {"tokenizer": 1}

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_users_pipeline_has_the_same_embeddings(self, files, dtype):
        from diffusers import StableDiffusion3Pipeline

        theirs = StableDiffusion3Pipeline.from_pretrained(
            files["sd3"].with_suffix(""),
            transformer=None, vae=None, scheduler=None, dtype=getattr(torch, dtype),
        )  # fmt: skip
        ours = open_text_encoder(encoder("sd3", dtype), files["sd3"], None, [])
        assert (ours.context, ours.pooled) == ([LENGTH + T5_LENGTH, 40], 14)
        for caption in (CAPTIONS[3], ""):
            context, pooled = ours(caption)
            wanted = pipeline_embeddings(
                {name: theirs.components[name] for name in sd3_text_parts(encoder("sd3"), files["sd3"])},
                caption,
            )
            assert torch.equal(context[0], wanted[0]) and torch.equal(pooled[0], wanted[1])
            assert context.dtype == getattr(torch, dtype)

    def test_without_t5_its_rows_are_zero_and_as_wide_as_the_transformer_takes(self, files):
        ours = open_text_encoder(encoder("sd3"), files["no-t5"], None, [])
        parts = sd3_text_parts(encoder("sd3"), files["no-t5"])
        assert parts["text_encoder_3"] is None and parts["tokenizer_3"] is None
        context, pooled = ours(CAPTIONS[0])
        wanted = pipeline_embeddings(parts, CAPTIONS[0], width=44)
        assert torch.equal(context[0], wanted[0]) and torch.equal(pooled[0], wanted[1])
        assert ours.context == [LENGTH + T5_LENGTH, 44] and not context[0, LENGTH:].any()

    def test_a_clip_of_ours_stands_for_both(self, files):
        ours = open_text_encoder(encoder("clip"), files["clip"], CLIP, [])
        parts = sd3_text_parts(encoder("clip"), files["clip"])
        context, pooled = ours(CAPTIONS[1])
        wanted = pipeline_embeddings(parts, CAPTIONS[1], width=2 * CLIP.width)
        assert torch.equal(context[0], wanted[0]) and torch.equal(pooled[0], wanted[1])
        assert torch.equal(pooled[0, :12], pooled[0, 12:]) and not context[0, LENGTH:].any()

    def test_the_pooled_embedding_is_that_of_the_clip_itself(self, files):
        net, _ = load_network(files["clip"])
        words = open_text_encoder(encoder("words"), None, None, CAPTIONS)
        pooled = open_text_encoder(encoder("clip"), files["clip"], CLIP, [])(CAPTIONS[1]).pooled[:, :12]
        tokens = words(CAPTIONS[1]).context
        torch.testing.assert_close(torch.nn.functional.normalize(pooled), net.embed_tokens(tokens))

    def test_nothing_is_drawn_and_nothing_trains(self, files):
        for kind in ("clip", "sd3"):
            for network in list(sd3_text_parts(encoder(kind), weights_of(kind, files)).values()):
                if isinstance(network, torch.nn.Module):
                    assert not network.training
                    assert not any(weight.requires_grad for weight in network.parameters())

    def test_longer_captions_are_counted_by_each_tokenizer(self, files):
        ours = open_text_encoder(encoder("sd3"), files["sd3"], None, [])
        assert ours.too_long(["a", "a a a a", "a " * 7]) == {
            "tokenizer": 1,
            "tokenizer_2": 1,
            "tokenizer_3": 2,
        }

    def test_refusals(self, files, tmp_path):
        with pytest.raises(ValueError, match=r"encoder\.kind: sd3 needs a file of weights; pass --encoder"):
            open_text_encoder(encoder("sd3"), None, None, [])
        with pytest.raises(ValueError, match=r"tokenizer: keeps 8 tokens, encoder\.length is 9"):
            open_text_encoder(encoder("sd3", length=9), files["sd3"], None, [])
        with pytest.raises(ValueError, match=r"tokenizer: keeps 8 tokens, encoder\.length is 9"):
            open_text_encoder(encoder("clip", length=9), files["clip"], CLIP, [])
        with pytest.raises(ValueError, match="files: none in tokenizer/: not the text side"):
            open_text_encoder(encoder("sd3"), self.record_without(files, tmp_path, "tokenizer/"), None, [])
        save_model(tmp_path / "other.safetensors", build(CLIP).state_dict(), CLIP, {})
        with pytest.raises(ValueError, match=r"text\.vocabulary is missing in its card"):
            open_text_encoder(encoder("clip"), tmp_path / "other.safetensors", CLIP, [])

    def record_without(self, files, folder, start):
        """A copy of the record that does not name a folder's files."""
        shutil.copytree(files["sd3"].with_suffix(""), folder / "tiny-sd3")
        for path in (folder / "tiny-sd3" / start).iterdir():
            path.unlink()
        return write_record(folder / "tiny-sd3")

    def test_damaged_and_foreign_files_are_not_loaded(self, files, tmp_path):
        folder = tmp_path / "tiny-sd3"
        shutil.copytree(files["sd3"].with_suffix(""), folder)
        record = write_record(folder)
        stranger = folder / "tokenizer" / "added_tokens.json"
        stranger.write_text("{}")
        with pytest.raises(ValueError, match=r"does not name tokenizer/added_tokens\.json"):
            open_text_encoder(encoder("sd3"), record, None, [])
        stranger.unlink()
        path = folder / "text_encoder_2" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        with pytest.raises(ValueError, match="differs from"):
            open_text_encoder(encoder("sd3"), record, None, [])
        path.unlink()
        with pytest.raises(ValueError, match="is missing"):
            open_text_encoder(encoder("sd3"), record, None, [])


@pytest.mark.parametrize("kind", ["words", "clip", "sd3"])
class TestStore:
    def test_embeddings_by_numbers(self, kind, files, tmp_path):
        manifest = make(spec_of(kind), files, tmp_path)
        card = spec_of(kind).text
        store = open_text(manifest, card)
        found = store(Y)
        alone = open_text_encoder(card.encoder, weights_of(kind, files), None, CAPTIONS)
        for place, number in enumerate(Y.tolist()):
            wanted = alone(CAPTIONS[number] if number >= 0 else "")
            assert torch.equal(found.context[place], wanted.context[0])
            assert torch.equal(found.pooled[place], wanted.pooled[0])
        assert store.context_shape == tuple(found.context.shape[1:])
        assert store.pooled_width == found.pooled.shape[1]
        assert read_captions_of(manifest) == CAPTIONS
        assert read_text_manifest(manifest).too_long == alone.too_long(CAPTIONS)
        assert copy.deepcopy(store) is store

    def test_stored_mapped_and_live_are_the_same(self, kind, files, tmp_path, monkeypatch):
        spec = spec_of(kind)
        stored = open_text(make(spec, files, tmp_path / "one"), spec.text)
        monkeypatch.setattr(text_encoding, "PART_BYTES", 2 * stored.content.row_bytes)
        monkeypatch.setattr(text_store, "IN_MEMORY", 0)
        manifest = make(spec, files, tmp_path / "several")
        assert [part.rows for part in read_text_manifest(manifest).parts] == [2, 2, 2]
        mapped = open_text(manifest, spec.text)
        live = open_live_text(spec, files["captions"], weights_of(kind, files))
        assert stored.digest == mapped.digest == live.digest
        assert stored.card == live.card and json.dumps(live.card)
        for y in (Y, torch.tensor([1, 2]), torch.tensor([-1] * 7)):
            wanted = stored(y)
            for store in (mapped, live):
                store.load(y)
                assert all(torch.equal(ours, theirs) for ours, theirs in zip(store(y), wanted, strict=True))

    def test_a_stopped_encoding_goes_on(self, kind, files, tmp_path, monkeypatch):
        spec = spec_of(kind)
        whole = make(spec, files, tmp_path / "whole")
        row_bytes = read_text_manifest(whole).row_bytes
        monkeypatch.setattr(text_encoding, "PART_BYTES", 2 * row_bytes)
        real, asked = text_encoding.encode_row, []

        def stopping(content, encoder, caption):
            asked.append(caption)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return real(content, encoder, caption)

        monkeypatch.setattr(text_encoding, "encode_row", stopping)
        folder = tmp_path / "stopped"
        with pytest.raises(KeyboardInterrupt):
            make(spec, files, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.00000.safetensors", "spec.json"]
        manifest = make(spec, files, folder)
        assert asked == [*CAPTIONS[:4], *CAPTIONS[2:], ""]
        y = torch.arange(-1, 5)
        pairs = zip(open_text(manifest, spec.text)(y), open_text(whole, spec.text)(y), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)

    def test_a_damaged_part_is_made_again(self, kind, files, tmp_path):
        manifest = make(spec_of(kind), files, tmp_path)
        part = tmp_path / "manifest.00000.safetensors"
        right = part.read_bytes()
        part.write_bytes(right[:-3] + bytes([right[-3] ^ 1]) + right[-2:])
        make(spec_of(kind), files, tmp_path)
        assert part.read_bytes() == right
        assert manifest.is_file()


def test_a_smaller_store_leaves_nothing_of_a_larger_one(files, tmp_path, small_parts):
    make(spec_of("sd3"), files, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    make(spec_of("sd3", prompts=True), files, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


class TestPrompts:
    def test_prompts_are_captions_too(self, files, tmp_path):
        spec = spec_of("clip", prompts=True)
        store = open_text(make(spec, files, tmp_path), spec.text)
        dataset = open_live_text(spec_of("clip"), files["captions"], files["clip"])
        dataset.load(torch.arange(2))
        for ours, theirs in zip(store(torch.arange(2)), dataset(torch.arange(2)), strict=True):
            assert torch.equal(ours, theirs)
        assert store.digest != dataset.digest

    def test_neither_captions_nor_prompts(self, files, tmp_path):
        spec = spec_of("words").model_copy(update={"dataset": None})
        with pytest.raises(ValueError, match="neither dataset nor prompts"):
            open_live_text(spec, files["captions"], None)


class TestResident:
    @pytest.fixture
    def store(self, files, tmp_path, small_parts):
        spec = spec_of("sd3")
        return open_text(make(spec, files, tmp_path), spec.text)

    def test_only_what_was_loaded_is_there(self, store):
        store.load(torch.tensor([0, 3]))
        store(torch.tensor([3, 0, -1]))
        with pytest.raises(ValueError, match=r"captions \[1, 4\] are not loaded; call load"):
            store(torch.tensor([0, 1, 4]))
        store.load(torch.tensor([1]))
        with pytest.raises(ValueError, match=r"captions \[3\] are not loaded"):
            store(torch.tensor([3]))

    def test_before_any_load_only_the_empty_caption_is_there(self, store):
        assert store(torch.tensor([-1])).context.isfinite().all()
        with pytest.raises(ValueError, match="not loaded"):
            store(torch.tensor([0]))

    @pytest.mark.parametrize("number", [5, -2])
    def test_numbers_outside(self, store, number):
        with pytest.raises(ValueError, match=r"are not all in -1\.\.4"):
            store.load(torch.tensor([number]))
        with pytest.raises(ValueError, match="not loaded"):
            store(torch.tensor([number]))

    def test_batches_of_one_size_stay_in_the_same_memory(self, store):
        """A captured step finds them there."""
        store.load(torch.tensor([0, 1, 2]))
        places = [tensor.data_ptr() for tensor in (*store._text, store._resident)]
        first = store(torch.tensor([0, 2])).context.clone()
        store.load(torch.tensor([4, 4, 4]))
        store.load(torch.tensor([2, 3, 0]))
        assert places == [tensor.data_ptr() for tensor in (*store._text, store._resident)]
        assert torch.equal(store(torch.tensor([0, 2])).context, first)

    def test_what_is_not_there_is_not_a_number_where_nobody_looks(self, store):
        """As on a GPU, which is not waited for: the network's output then is not finite."""
        store.load(torch.tensor([0]))
        assert store._text.context[-1].isnan().all() and store._text.pooled[-1].isnan().all()

    def test_a_row_that_changes_on_the_disk_is_found(self, store, tmp_path):
        part = tmp_path / "manifest.00001.safetensors"
        content = bytearray(part.read_bytes())
        content[-9] ^= 1
        with part.open("r+b") as stream:
            stream.write(content)
        with pytest.raises(
            ValueError, match=r"manifest\.00001\.safetensors: damaged: row 3; make the store again"
        ):
            store.load(torch.tensor([0, 3]))


class TestRefused:
    @pytest.fixture
    def manifest(self, files, tmp_path):
        return make(spec_of("sd3", dtype="bfloat16"), files, tmp_path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": "others"}, "name: the store has 'tiny', the spec asks for 'others'"),
            ({"captions": 4}, "captions: the store has 5, the spec asks for 4"),
            ({"length": 9}, "encoder.length: the store has 8"),
            ({"t5_length": 6}, "encoder.t5_length: the store has 5"),
            ({"dtype": "float32"}, "encoder.dtype: the store has 'bfloat16', the spec asks for 'float32'"),
            ({"weights": Weights(asset="other", file="model_index.json")}, "encoder.weights: the store has"),
        ],
    )
    def test_another_store(self, manifest, change, words):
        card = spec_of("sd3", dtype="bfloat16").text
        own = {key: value for key, value in change.items() if key in TextCard.model_fields}
        rest = {key: value for key, value in change.items() if key not in own}
        card = card.model_copy(update=own | {"encoder": card.encoder.model_copy(update=rest)})
        with pytest.raises(ValueError) as error:
            open_text(manifest, card)
        assert str(error.value).startswith(f"{manifest}: {words}") and "\n" not in str(error.value)

    def test_damaged_files(self, manifest, tmp_path):
        card = spec_of("sd3", dtype="bfloat16").text
        part = tmp_path / "manifest.00000.safetensors"
        right = part.read_bytes()
        part.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        with pytest.raises(
            ValueError, match=r"manifest\.00000\.safetensors: sha256: .* damaged; make the store"
        ):
            open_text(manifest, card)
        part.write_bytes(right[:-1])
        with pytest.raises(ValueError, match=r"00000\.safetensors: bytes: \d+, the manifest says"):
            open_text(manifest, card)
        part.unlink()
        with pytest.raises(ValueError, match=r"00000\.safetensors, which is missing"):
            open_text(manifest, card)
        manifest.write_text(manifest.read_text().replace('"pooled": 14', '"pooled": 15'))
        with pytest.raises(ValueError, match="not a manifest of text embeddings: its digest is another one"):
            open_text(manifest, card)

    def test_a_manifest_that_disagrees_with_itself(self, manifest):
        content = json.loads(manifest.read_text())
        del content["digest"]
        for key, value in (("context", [12, 40]), ("dtype", "float32"), ("parts", content["parts"] * 2)):
            manifest.write_text(json.dumps(content | {key: value}))
            with pytest.raises(ValueError, match=rf"manifest\.json: {key}: .* disagrees with"):
                read_text_manifest(manifest)

    def test_a_part_of_another_store(self, files, manifest, tmp_path):
        other = make(spec_of("sd3", dtype="bfloat16", prompts=True), files, tmp_path / "other")
        content = json.loads(manifest.read_text())
        theirs = json.loads(other.read_text())
        del content["digest"]
        shutil.copy(other.with_name("manifest.00000.safetensors"), tmp_path)
        manifest.write_text(json.dumps(content | {"parts": [theirs["parts"][0] | {"rows": 6}]}))
        with pytest.raises(ValueError, match="of another store"):
            open_text(manifest, spec_of("sd3", dtype="bfloat16").text)

    def test_other_captions(self, manifest):
        path = manifest.with_name("manifest.captions.json")
        path.write_text(path.read_text().replace("dog", "cow"))
        with pytest.raises(ValueError, match=r"captions\.json: sha256: "):
            read_captions_of(manifest)

    @pytest.mark.parametrize(
        ("captions", "words"),
        [
            ([*CAPTIONS[:4], ""], "captions.json: captions"),
            ([*CAPTIONS[:4], None], "captions.json: captions"),
            ([*CAPTIONS[:4], "\ud800"], "captions.json: captions"),
            (CAPTIONS[:4], "captions.json: dataset.classes"),
        ],
    )
    def test_bad_captions(self, captions, words, tmp_path):
        folder = tmp_path / "scenes"
        folder.mkdir()
        (folder / "captions.json").write_text(json.dumps({"captions": captions}))
        with pytest.raises(ValueError) as error:
            make(spec_of("words"), {"captions": write_record(folder)}, tmp_path)
        assert words in str(error.value) and not (tmp_path / "manifest.json").exists()

    def test_other_number_of_captions_than_asked_for(self, files):
        spec = spec_of("words")
        spec = spec.model_copy(update={"text": spec.text.model_copy(update={"captions": 4})})
        with pytest.raises(ValueError, match="5 captions, the spec says captions: 4"):
            open_live_text(spec, files["captions"], None)

    def test_embeddings_that_are_not_finite(self, files, tmp_path, monkeypatch):
        def broken(self, caption):
            return text_store.Text(torch.full((1, 13, 40), torch.inf), torch.zeros(1, 14))

        monkeypatch.setattr("fewstep.data.text_encoders.Sd3Text.__call__", broken)
        with pytest.raises(ValueError, match="not finite in float32: caption 'a dog'"):
            make(spec_of("sd3"), files, tmp_path)

    def test_captions_that_are_cut_are_told(self, files, tmp_path, capsys):
        manifest = make(spec_of("sd3", t5_length=4), files, tmp_path)
        assert read_text_manifest(manifest).too_long == {"tokenizer": 1, "tokenizer_2": 1, "tokenizer_3": 3}
        assert (
            "3 of 5 captions (60.0%) are longer than tokenizer_3 keeps, and are cut"
            in capsys.readouterr().out
        )


class TestClip:
    def test_words_that_do_not_fit_the_network_are_refused(self, files, tmp_path):
        net = build(CLIP)
        spec = spec_of("words")
        net.text = open_text(make(spec, files, tmp_path), spec.text)
        images = torch.randn(5, 3, 16, 16)
        found = net(images, Y)
        assert [tuple(each.shape) for each in found] == [(5, 12), (5, 12), ()]
        for other in ({"length": LENGTH + 1}, {"vocabulary": 10}):
            with pytest.raises(ValueError, match="do not fit captions of"):
                build(CLIP.model_copy(update=other)).text = net.text

    def test_without_captions(self):
        with pytest.raises(ValueError, match="needs a store of text"):
            build(CLIP)(torch.randn(1, 3, 16, 16), torch.tensor([0]))

    def test_initial_weights_are_torchs_and_of_a_sensible_size(self):
        states = []
        for _ in range(2):
            torch.manual_seed(3)
            states.append(build(CLIP).state_dict())
        assert all(torch.equal(one, other) for one, other in zip(*map(dict.values, states), strict=True))
        for name, weight in states[0].items():
            if weight.ndim > 1:
                assert 0.005 < float(weight.std()) < 0.5, name
        with torch.device("meta"):
            assert all(weight.is_meta for weight in build(CLIP).parameters())
