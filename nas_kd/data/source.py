"""The base of the `data` section of each source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_kd.data.cache import ClipCache
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.files import encoding_of
from nas_kd.data.label_form import LabelForm
from nas_kd.data.sample import DataError
from nas_kd.data.spelling import unfit_names
from nas_kd.data.splits import Splits
from nas_kd.data.table import read_table
from nas_kd.settings.names import names_as_text

TABLES = ("labels.csv", "labels.parquet")
_READING_KEYS = (
    *("workers", "decode_threads"),
    *("cache_dir", "cache_limit_gb", "index_dir"),
)


@dataclass(frozen=True)
class Recognised:
    """What `nas-kd init` takes a folder for.

    Attributes:
        data: keys of the `data` section.
        task: that such data are mostly for.
    """

    data: dict[str, Any]
    task: str


def labels_in(root: Path, columns: Sequence[str]) -> tuple[str, list[dict[str, str]]] | None:
    """Name and rows of the table of labels in a folder; None where it has none with these columns.

    Args:
        root: the folder.
        columns: that the table must have.
    """
    for name in TABLES:
        if (root / name).is_file():
            try:
                return name, [row for _, row in read_table(root / name, columns)]
            except DataError:
                return None
    return None


class SourceConfig(BaseModel):
    """The `data` section of a source. Subclasses add a literal `source`, the name, and its options.

    Attributes:
        decodes: whether `load` decodes files, which `outline` does not.
        stored_by: key by which samples get more frames than nets see; "" where none does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decodes: ClassVar[bool] = False
    stored_by: ClassVar[str] = ""

    workers: int = Field(
        default=0,
        ge=0,
        description="Processes that read items ahead of a training, of sets that are not in memory; 0: a thread reads "
        "ahead, and items of `own` are read when they are needed.",
    )

    @classmethod
    def recognise(cls, root: Path) -> Recognised | None:
        """What a campaign file says of a folder with data of this source; None for other folders.

        Args:
            root: the folder.
        """
        return None

    @classmethod
    def gives_features(cls, section: Mapping[str, object]) -> bool:
        """Whether items are frame features instead of clips.

        Args:
            section: what the campaign file says, not checked yet.
        """
        return False

    @property
    def content(self) -> dict[str, Any]:
        """The section as JSON values without the keys that change how fast items are read, but not the items."""
        return self.model_dump(mode="json", exclude=set(_READING_KEYS))

    @property
    def reading_hint(self) -> str:
        """What to do where a training waits for data."""
        return f"raise data.workers ({self.workers} now), or take a smaller size or fewer frames"

    @property
    def decoding(self) -> FileDecoding | None:
        """How files become items; None where items are not made from videos or images."""
        return None

    @property
    def label_form(self) -> LabelForm | None:
        """How labels are written; None where they are not those of a table of files."""
        return None

    def decoded_bytes(self, splits: Splits) -> int:
        """Most that the cache of decoded files can take for these splits; 0 where there is none.

        Args:
            splits: of this section.
        """
        return 0

    @abstractmethod
    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        """The splits that the section describes.

        Args:
            seed: Seed of the campaign, ≥ 0: which training items fit weights and which gates.
            gate_share: Share of the training items that fits gates, in (0, 1).

        Raises:
            DataError: The data cannot be used; one sentence says why and what to do.
        """

    def outline(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        """The same before files are decoded: an item is decoded when it is read, so do not read many.

        Files that turn out not to be readable may leave items out later, where the section allows it.

        Args:
            seed: As for `load`.
            gate_share: As for `load`.

        Raises:
            DataError: As by `load`.
        """
        return self.load(seed=seed, gate_share=gate_share)


class CachedConfig(SourceConfig):
    """The `data` section of a source of which items are decoded, unpacked or computed once, into a cache on disk."""

    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "nas_kd" / "clips",
        description="What was decoded is kept here.",
    )
    cache_limit_gb: float = Field(
        default=20.0, gt=0, description="Above this the cache deletes what was not used for longest."
    )

    def open_cache(self) -> ClipCache:
        """The cache on disk."""
        return ClipCache(self.cache_dir.expanduser(), int(self.cache_limit_gb * 1e9))


class LabelledConfig(CachedConfig):
    """The `data` section of a source whose csv has a class for each row."""

    root: Path = Field(description="The folder; paths in the csv are relative to it and may not leave it.")
    labels: str = Field(default="labels.csv", description="The csv or Parquet file, relative to `root`.")
    classes: tuple[str, ...] | str | None = Field(
        default=None,
        description="All labels by class index, as the teacher counts them: a list, or a text file relative to `root` "
        "with one a line. By default those of the training split, by value where all are whole numbers, else by text.",
    )

    @field_validator("classes", mode="before", json_schema_input_type=tuple[str | int, ...] | str | None)
    @classmethod
    def _names_are_text(cls, value: object) -> object:
        return names_as_text(value)

    def listed_classes(self) -> tuple[str, ...] | None:
        """The classes that the section lists, by index; None where it lists none.

        Raises:
            DataError: The file cannot be read, or a class is empty or listed twice.
        """
        if self.classes is None:
            return None
        names = self.classes
        if isinstance(names, str):
            path = self.root / names
            try:
                names = tuple(path.read_text(encoding=encoding_of(path)).rstrip().split("\n"))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DataError(
                    f"data.classes must be a list or a text file with one class a line, but {path} gave: {reason}"
                ) from error
        names = tuple(name.strip() for name in names)  # as cells of tables are
        if problem := unfit_names(names):
            raise DataError(f"data.classes must be names that differ, but {problem}")
        return names
