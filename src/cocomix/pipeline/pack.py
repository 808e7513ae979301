"""Concept packs: a pretrained autoencoder and labels of whole corpora, as a folder that anybody can use.

    PACK/pack.json                      what it is, how it was made, and the checksum of every other file
    PACK/sae/                           the autoencoder, as `sae.pretrained` reads it, in half precision
    PACK/names.json.xz                  names of its concepts, if they were made
    PACK/labels/CORPUS/SPLIT/ends.xz    the bytes of its document that each token of the concept model has read
    PACK/labels/CORPUS/SPLIT/NAME.xz    labels at these tokens, see `cocomix.labels.pack_codec`

`find_pack` takes what a user names. `Pack` reads: sizes come before contents, checksums before both are used. A run
whose settings name a pack gets teacher, autoencoder and label sets from it (`with_pack`), and keeps these values with
the checksum of the pack, so that a finished run needs the pack no more.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator

import cocomix
from cocomix.analysis.naming import FoundNames
from cocomix.data.byte_offsets import UNKNOWN
from cocomix.data.corpus import Corpus
from cocomix.data.text_ends import END
from cocomix.labels.pack_codec import SetLayout, read_ends, read_set
from cocomix.sae.formats.base import is_hub_id
from cocomix.sae.sae import TopKSAE
from cocomix.utils.advice import command_on
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_readable, parse_json, read_json, seal, sha256_of
from cocomix.utils.integrity import check_files
from cocomix.utils.settings import Section, validate

MANIFEST, SAE, NAMES, LABELS = "pack.json", "sae", "names.json.xz", "labels"
FORMAT = 1
LARGEST_MANIFEST, LARGEST_NAMES = 1 << 22, 1 << 27
"""Bytes of `pack.json`, and of the names before they are compressed."""
NAME = r"^[\w.-]+$"
SPLITS = ("train", "val")
"""Splits that have labels."""
AGAIN = "get the pack again, or build it again (cocomix pack build RECIPE)"


class PackTeacher(Section):
    """The concept model, which a pack does not hold."""

    source: str = Field(description="as `teacher.pretrained` says it")
    description: str
    checksum: str = Field(description="of its weights, tensor by tensor, whatever files they are in")
    licence: str | None
    architecture: dict[str, Any] = Field(description="of its config.json")
    parameters: int
    tokenizer: str = Field(description="checksum of its vocabulary")
    seq_len: int = Field(ge=4)
    bos: Literal["auto", True, False]
    run_as: dict[str, Any] = Field(description="dtype, attention and positions that it was run with")


class PackRounding(Section):
    """What half precision changes in the autoencoder, measured when the pack was built."""

    dtype: str
    positions: int = Field(description="validation positions it was measured on")
    active_changed_share: float = Field(description="of positions, at which another set of latents is active")
    explained_variance_before: float
    explained_variance_after: float
    labels_changed_share: dict[str, float] = Field(
        default_factory=dict, description="of labelled positions that it labels otherwise, by corpus, set and sign"
    )
    labels_other_share: dict[str, float] = Field(
        default_factory=dict, description="of these, where its labels are not as good either; see `pack_agreement`"
    )


class PackSae(Section):
    """The autoencoder."""

    layer: int = Field(ge=0)
    n_latents: int = Field(ge=1, le=1 << 24)
    k: int = Field(ge=1)
    d_model: int = Field(ge=1)
    checksum: str = Field(description="of the autoencoder in full precision, which labels were made with")
    settings: dict[str, Any]
    skip_first: int = Field(ge=0)
    skip_norm: float | None
    figures: dict[str, Any] = Field(description="its quality on validation text, before rounding")
    rounding: PackRounding


class PackSplit(Section):
    """One split of a corpus."""

    text: str = Field(description="checksum of the documents' texts, see `text_checksum`")
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0, le=1 << 40, description="of the concept model's stream, special ones included")
    positions: int = Field(ge=0, description="tokens with a next one in their document, which labels can be of")
    windows: int = Field(ge=0)
    labelled_windows: int = Field(ge=0)
    covered_share: float = Field(ge=0, le=1, description="of `positions`, in windows that were labelled")
    located: float = Field(ge=0, le=1, description="share of the tokens that could be located in the text")


class PackLabels(Section):
    """One label set, of all splits of a corpus."""

    name: str = Field(pattern=NAME)
    rule: str
    signs: tuple[str, ...] = Field(min_length=1)
    k: int = Field(ge=1, le=80, description="labels per position K_attr")
    batch_size: int = Field(ge=1)
    precision: str
    valid_share: dict[str, dict[str, float]] = Field(description="of covered positions, by split and sign")
    bits: dict[str, float] = Field(description="of a covered position in the pack, by split")
    seconds: float = Field(ge=0, description="that making those of the training split took, on the builder's machine")
    flops: float = Field(ge=0)
    tokens: int = Field(ge=0, description="that were read for those of the training split")


class PackCorpus(Section):
    """The labels of one corpus, with the settings it is read with."""

    name: str = Field(pattern=NAME)
    settings: dict[str, Any] = Field(description="as `corpus` in a run")
    splits: dict[str, PackSplit]
    labels: tuple[PackLabels, ...]

    @field_validator("splits")
    @classmethod
    def _has_both(cls, splits: dict[str, PackSplit]) -> dict[str, PackSplit]:
        if splits.keys() != set(SPLITS):
            raise ValueError(f"a corpus has the splits {' and '.join(SPLITS)}")
        return splits


class PackManifest(Section):
    """The content of `pack.json`."""

    format: int
    name: str = Field(pattern=NAME)
    title: str
    teacher: PackTeacher
    sae: PackSae
    names: bool
    corpora: tuple[PackCorpus, ...]
    lineage: dict[str, Any]
    files: list[dict[str, Any]]


class Pack:
    """A pack on disk.

    Attributes:
        folder: where it is.
        about: the content of its `pack.json`.
        checksum: of that content, which has the checksums of all files in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / MANIFEST
        check_readable(path)
        try:
            if path.stat().st_size > LARGEST_MANIFEST:
                raise ValueError(f"it has more than {LARGEST_MANIFEST:,} bytes")
            content = read_json(path)
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
        except FileNotFoundError:
            raise CocomixError(f"{folder} is no pack (it has no {MANIFEST}); give the folder of one") from None
        except (OSError, ValueError) as error:
            raise CocomixError(f"{path} is damaged ({error}); {AGAIN}") from None
        number = content.get("format")
        if isinstance(number, int) and number > FORMAT:
            raise CocomixError(
                f"the pack {folder} is of format {number} and this version of cocomix reads up to {FORMAT}; update"
                " cocomix"
            )
        self.checksum = seal(content)
        if content.pop("seal", None) != self.checksum:
            raise CocomixError(f"{path} is damaged (it was altered); {AGAIN}")
        self.about = validate(PackManifest, content, str(path))

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CocomixError: one is missing or altered.
        """
        check_files(self.folder, self.about.files, what="file", hint=AGAIN)  # pyright: ignore[reportArgumentType]

    def sae(self) -> TopKSAE:
        """The autoencoder, in float32.

        Raises:
            CocomixError: it is not the one that `pack.json` says.
        """
        sae, about = TopKSAE.from_pretrained(self.folder / SAE).float(), self.about.sae
        if (sae.n_latents, sae.d_model, sae.k) != (about.n_latents, about.d_model, about.k):
            raise CocomixError(f"the autoencoder of the pack {self.folder} has other sizes than it says; {AGAIN}")
        return sae.eval().requires_grad_(False)

    def names(self) -> FoundNames | None:
        """Names of the concepts, if it has some.

        Raises:
            CocomixError: they are damaged.
        """
        if not self.about.names:
            return None
        path = self.folder / NAMES
        try:
            reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28)
            content = reader.decompress(path.read_bytes(), max_length=LARGEST_NAMES)
            if not reader.eof:
                raise ValueError(f"it is cut, or has more than {LARGEST_NAMES:,} bytes")
            return FoundNames.model_validate_json(content)
        except (OSError, lzma.LZMAError, ValueError, ValidationError) as error:
            raise CocomixError(f"{path} is damaged ({reason(error)}); {AGAIN}") from None

    def corpus(self, texts: Mapping[str, str]) -> PackCorpus:
        """The corpus whose splits have these checksums.

        Raises:
            CocomixError: it has none.
        """
        for corpus in self.about.corpora:
            if all(about.text == texts[split] for split, about in corpus.splits.items()):
                return corpus
        have = "; ".join(f"{corpus.name} ({corpus.splits['train'].text[:12]})" for corpus in self.about.corpora)
        raise CocomixError(
            f"the pack {self.folder} has labels of other texts ({have or 'none'}) than this corpus"
            f" ({texts['train'][:12]}); use the corpus settings that {command_on('cocomix pack show', self.folder)}"
            f" prints, or leave out `pack` and label this corpus with sae.pretrained={self.folder / SAE} and"
            f" teacher.pretrained={self.about.teacher.source}"
        )

    def labels(self, corpus: PackCorpus, rule: str, k: int, signs: tuple[str, ...]) -> PackLabels:
        """The label set of `corpus` by `rule`, with `k` labels a position, that has these signs.

        Raises:
            CocomixError: it has none.
        """
        for labels in corpus.labels:
            if (labels.rule, labels.k) == (rule, k) and set(signs) <= set(labels.signs):
                return labels
        have = "; ".join(f"{one.rule}, k {one.k}, signs {', '.join(one.signs)}" for one in corpus.labels)
        raise CocomixError(
            f"the pack {self.folder} has no labels of {corpus.name} by the rule {rule} with k {k} and"
            f" {'the sign' if len(signs) == 1 else 'the signs'} {', '.join(signs)}; it has {have or 'none'}"
        )

    def split_folder(self, corpus: PackCorpus, split: str) -> Path:
        """Where the labels of a split are."""
        return self.folder / LABELS / corpus.name / split

    def ends(self, corpus: PackCorpus, split: str, text_bytes: int) -> np.ndarray:
        """What each token of the stream has read of its document, int64 `[tokens]`; see `cocomix.data.text_ends`.

        Args:
            text_bytes: of the split, which bounds what is accepted.

        Raises:
            CocomixError: the file is damaged, or the stream cannot be one of this text.
        """
        about, path = corpus.splits[split], self.split_folder(corpus, split) / "ends.xz"
        if about.tokens > MOST_TOKENS_PER_BYTE * (text_bytes + 8 * about.documents):
            raise CocomixError(f"{path} is damaged (it has more tokens than its text allows); {AGAIN}")
        ends = read_ends(path, about.tokens, unknown=UNKNOWN, end=END)
        if int((ends == END).sum()) != about.documents or ends.max(initial=0) > text_bytes:
            raise CocomixError(f"{path} is damaged (its documents are not those of the text); {AGAIN}")
        return ends

    def rows(self, corpus: PackCorpus, split: str, labels: PackLabels) -> Iterator[Any]:
        """The labels of a split as blocks of `Rows`, see `cocomix.labels.pack_codec`.

        Raises:
            CocomixError: a file is damaged.
        """
        folder, tokens = self.split_folder(corpus, split), corpus.splits[split].tokens
        chosen = corpus.labels[: corpus.labels.index(labels) + 1]  # a set refers to those before it
        layouts = [SetLayout(tokens, self.about.sae.n_latents, one.k) for one in chosen]
        slots: list[np.ndarray] = []
        readers = [
            read_set(folder / f"{one.name}.xz", layout, lambda: slots)
            for one, layout in zip(chosen, layouts, strict=True)
        ]
        rows: Any = None
        for _ in layouts[-1].blocks():
            slots.clear()
            for reader in readers:
                rows = next(reader)
                slots.append(rows.slots)
            yield rows
        for reader in readers:
            next(reader, None)  # checks that nothing is behind the last block


MOST_TOKENS_PER_BYTE = 4
"""Bound on the tokens of a text, special ones included."""


REPOSITORY = Path(cocomix.__file__).parents[2]
PLACES = (REPOSITORY / "packs", Path(cocomix.__file__).parent / "packs")
"""Where packs that come with a checkout or an installation are."""


def with_pack(raw: dict[str, Any]) -> dict[str, Any]:
    """A run's plain settings with what the pack that they name says, and its checksum; settings that have one stay.

    Raises:
        CocomixError: there is no such pack, or the settings ask for another teacher or layer.
    """
    given = raw.get("pack")
    if isinstance(given, str):
        given = {"source": given}
    if not isinstance(given, dict) or not isinstance(given.get("source"), str) or given.get("checksum") is not None:
        return raw
    source = given["source"]
    pack = Pack(find_pack(source))
    about = pack.about
    teacher = {
        "pretrained": about.teacher.source,
        "tokenizer": "own",
        "seq_len": about.teacher.seq_len,
        "bos": about.teacher.bos,
    }
    sae = {name: getattr(about.sae, name) for name in ("layer", "n_latents", "k", "skip_first", "skip_norm")}
    filled = raw | {
        "pack": given | {"checksum": pack.checksum},
        "teacher": _agreed(source, "teacher", teacher, raw.get("teacher")),
        "sae": _agreed(source, "sae", sae, raw.get("sae")) | {"pretrained": source},
    }
    if raw.get("labels") is None and about.corpora:
        names = ("rule", "signs", "k", "batch_size", "precision")
        sets = {one.name: {name: getattr(one, name) for name in names} for one in about.corpora[0].labels}
        filled["labels"] = {name: values | {"signs": list(values["signs"])} for name, values in sets.items()}
    return filled


def _agreed(source: str, section: str, values: dict[str, Any], given: Any) -> dict[str, Any]:
    """A section of the pack's values and those `given` beside them."""
    if not isinstance(given, dict):
        return values
    for name, value in values.items():
        if name in given and given[name] != value:
            raise CocomixError(
                f"the pack {source} has {section}.{name} {value} and the settings have {given[name]}; leave"
                f" {section}.{name} out, or give a pack of that {'teacher' if section == 'teacher' else 'autoencoder'}"
            )
    return given | values


def open_pack(source: str, checksum: str | None) -> Pack:
    """The pack that a run's settings name, as they name it.

    Raises:
        CocomixError: there is none, or it is another one than the run was begun with.
    """
    pack = Pack(find_pack(source))
    if checksum is not None and pack.checksum != checksum:
        raise CocomixError(
            f"the pack {source} is not the one that this run's settings were made with (pack.checksum); restore that"
            " one, or set pack.checksum=null to use this"
        )
    return pack


def is_here(source: str) -> bool:
    """Whether a pack that may come with cocomix does."""
    return any((place / source / MANIFEST).is_file() for place in PLACES)


def find_pack(source: str) -> Path:
    """The folder of the pack `source`: a folder, the name of one that came with cocomix, or a hub id.

    Raises:
        CocomixError: there is none.
    """
    if Path(source).is_dir():
        return Path(source)
    name = source.removeprefix("packs/")
    for place in PLACES:
        if "/" not in name and (place / name / MANIFEST).is_file():
            return place / name
    if not is_hub_id(source) or source.count("/") != 1:
        here = sorted(path.parent.name for place in PLACES for path in place.glob(f"*/{MANIFEST}"))
        raise CocomixError(
            f"there is no pack {source}; give its folder or a hub id OWNER/NAME"
            + (f", or one of those that come with cocomix: {', '.join(here)}" if here else "")
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[MANIFEST, f"{SAE}/*", NAMES, f"{LABELS}/*"]))
    except Exception as error:  # errors of the HTTP library come through, and which one that is depends on the version
        raise CocomixError(
            f"the pack {source} is not a folder here and cannot be downloaded from the hub ({reason(error)}); correct"
            " `pack`, or download it and give its folder"
        ) from error


def tensors_checksum(folder: Path) -> str:
    """Checksum of all tensors in the safetensors files of `folder`, by name, whatever files they are in.

    Raises:
        CocomixError: a file is damaged.
    """
    places: dict[str, tuple[Path, int, int, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            try:
                size = int.from_bytes(stream.read(8), "little")
                if not 0 < size <= path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = parse_json(stream.read(size))
                header.pop("__metadata__", None)
                for name, entry in header.items():
                    begin, end = entry["data_offsets"]
                    about = f"{name} {entry['dtype']} {list(entry['shape'])}"
                    places[name] = (path, 8 + size + begin, end - begin, about)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CocomixError(f"the weights {path} are damaged ({reason(error)}); use intact ones") from None
    checksum = hashlib.sha256()
    for name in sorted(places):
        path, begin, size, about = places[name]
        checksum.update(about.encode())
        with path.open("rb") as stream:
            stream.seek(begin)
            while size > 0 and (part := stream.read(min(size, 1 << 24))):
                checksum.update(part)
                size -= len(part)
    return checksum.hexdigest()


def vocabulary_checksum(tokenizer: Any) -> str:
    """Checksum of a tokenizer's entries and their numbers."""
    return sha256_of(json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])))


def text_checksum(corpus: Corpus, split: str) -> tuple[str, int]:
    """Checksum of the texts of a split, document by document, whatever files they are in; and their bytes."""
    checksum, size = hashlib.sha256(), 0
    for document in corpus.documents(split):
        content = document.text.encode(errors="surrogatepass")
        checksum.update(len(content).to_bytes(8, "little") + content)
        size += len(content)
    return checksum.hexdigest(), size
