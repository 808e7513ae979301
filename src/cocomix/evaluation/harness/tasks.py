"""The harness's tasks by name, with their data from the hub or from a local folder.

Data that lies at hand: FOLDER/OWNER/NAME or FOLDER/OWNER__NAME holds the dataset OWNER/NAME in the hub's own format,
that is a copy of its repository, or Parquet or JSON-lines files named by split (`validation.jsonl`,
`data/test-00000-of-00001.parquet`). A dataset with configurations keeps each in a subfolder of its name, unless its
README.md maps them. The harness's way to change a task is a YAML that includes the original; that is what is written.
"""

import difflib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from cocomix.utils.errors import CocomixError


class Tasks:
    """All tasks the harness knows; making it reads its whole index, which takes some seconds.

    Args:
        data: folder with the tasks' data; None: the hub.
        manager: an index at hand; None: the harness's whole one.
    """

    def __init__(self, data: Path | None = None, manager: TaskManager | None = None) -> None:
        if data is not None and not data.is_dir():
            raise CocomixError(f"there is no folder {data}; give --task-data a folder with the tasks' datasets")
        self.data = data
        self.manager = manager or TaskManager()

    def check(self, names: Sequence[str]) -> None:
        """Refuse an unknown name before any model is loaded.

        Raises:
            CocomixError: the harness has no task, group or tag of that name.
        """
        if not names:
            raise CocomixError("no task is named; give --tasks a list such as lambada_openai,wikitext")
        for name in names:
            if name not in self.manager.task_index:
                near = difflib.get_close_matches(name, self.manager.all_tasks, n=3)
                raise CocomixError(
                    f"lm-evaluation-harness has no task {name!r}"
                    + (f"; it has {', '.join(near)}" if near else "; `lm_eval ls tasks` lists them")
                )

    def load(self, name: str) -> dict[str, Any]:
        """The tasks behind one name, with their data, as the harness's `evaluate` takes them.

        Raises:
            CocomixError: unknown name, or data that is missing or cannot be read.
        """
        self.check([name])
        with self._redirected(name):
            try:
                return dict(self.manager.load([name]))
            except CocomixError:
                raise
            except Exception as error:  # datasets raises many unrelated types for what is one cause to a user
                raise self._unreadable(name, error) from error

    def leaves(self, name: str) -> list[str]:
        """The single tasks behind a task, group or tag."""
        entry = self.manager.task_index.get(name)
        if entry is None:
            return []
        if entry.kind.name == "TAG":
            return [leaf for one in sorted(entry.tags) for leaf in self.leaves(one)]
        if entry.kind.name == "GROUP":
            return [leaf for one in _members(entry.cfg or {}) for leaf in self.leaves(one)]
        return [name]

    @contextmanager
    def _redirected(self, name: str) -> Iterator[None]:
        """Within: the index names a YAML that includes the task's own and gives its data another place."""
        if self.data is None:
            yield
            return
        index, original = self.manager.task_index, {}
        with tempfile.TemporaryDirectory() as folder:
            try:
                for leaf in dict.fromkeys(self.leaves(name)):
                    entry = index[leaf]
                    if entry.yaml_path is None or not (entry.cfg or {}).get("dataset_path"):
                        continue
                    original[leaf] = entry.yaml_path
                    path = Path(folder) / f"{len(original)}.yaml"
                    changed = {"include": str(entry.yaml_path)} | self._place(leaf, entry.cfg or {})
                    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
                    entry.yaml_path = path
                yield
            finally:
                for leaf, path in original.items():
                    index[leaf].yaml_path = path

    def _place(self, task: str, config: dict[str, Any]) -> dict[str, Any]:
        """`dataset_path` and `dataset_name` of a task's data in our folder."""
        assert self.data is not None
        dataset, name = str(config["dataset_path"]), config.get("dataset_name")
        expected = [self.data / dataset, self.data / dataset.replace("/", "__")]
        folder = next((path for path in expected if path.is_dir()), None)
        if folder is None:
            raise CocomixError(
                f"the data of the task {task} is not in {self.data}; put the dataset {dataset} into {expected[0]}"
            )
        if name is not None and (folder / str(name)).is_dir():
            return {"dataset_path": str((folder / str(name)).resolve()), "dataset_name": None}
        card = folder / "README.md"
        mapped = card.exists() and "config_name" in card.read_text(encoding="utf-8", errors="replace")
        return {"dataset_path": str(folder.resolve()), "dataset_name": name if mapped else None}

    def _unreadable(self, name: str, error: Exception) -> CocomixError:
        first = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if isinstance(error, KeyError) and error.args[0] in ("train", "validation", "test"):
            first = f"it has no split {error.args[0]!r}, which the task names"
        where = {str((self.manager.task_index[leaf].cfg or {}).get("dataset_path")) for leaf in self.leaves(name)}
        what = f"the data of the task {name} ({', '.join(sorted(where))})"
        mend = (
            "put it into a folder and give that as --task-data, or connect to the hub"
            if self.data is None
            else f"mend it in {self.data}; Parquet or JSON-lines files named by split are expected"
        )
        return CocomixError(f"{what} cannot be read ({first}); {mend}")


def _members(config: dict[str, Any]) -> list[str]:
    """Names in a group's `task` list, which holds names and small mappings."""
    listed = config.get("task")
    names = [one if isinstance(one, str) else one.get("task") for one in listed if one] if listed else []
    return [name for name in names if isinstance(name, str)]
