"""The frozen and strict base of every section of the configuration files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from pipelines.records.expected import SLUG, expected_one_of
from pipelines.settings.yaml_file import cut

Slug = Annotated[str, Field(pattern=SLUG)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """A frozen section of the file. An unknown key is an error that lists the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    # Keys of other sections that people write here by mistake, each with a hint to the right place.
    belongs_elsewhere: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    expected = cls.belongs_elsewhere.get(str(key)) or expected_one_of(str(key), known)
                    message = f"unknown key {cut(repr(key))}; {expected}"
                    raise PydanticCustomError("unknown_key", "{message}", {"message": message, "key": str(key)})
        return data


class NamesFiles(Strict):
    """A section that names files or folders.

    A relative path is relative to the folder of the settings file, wherever a command is started.
    `~` is the home folder. The field keeps the path as written, because fingerprints contain it.
    """

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _note_folder(self, info: ValidationInfo) -> "NamesFiles":
        if info.context:
            self._folder = info.context["folder"]
        return self

    @property
    def folder(self) -> Path:
        """The folder of the settings file, the base of relative paths."""
        return self._folder

    def placed(self, path: str) -> Path:
        """The full path of a file or folder that the section names."""
        return self._folder / os.path.expanduser(path)
