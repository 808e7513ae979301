"""The harness's tasks by name, with their data from the hub or from a local folder.

Local data: FOLDER/OWNER/NAME or FOLDER/OWNER__NAME holds the dataset OWNER/NAME as on the hub. That is a copy of its
repository, or Parquet or JSON-lines files named by split (`validation.jsonl`, `data/test-00000-of-00001.parquet`). A
dataset with configurations keeps each in a subfolder of that name, unless its README.md maps them. A task is pointed to
local data in the way the harness provides: a YAML file that includes the task's own and overrides the dataset.
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
    """All tasks of the harness. Its index is read when this is created, which takes some seconds.

    Args:
        data: folder with the tasks' data; None: the hub.
        manager: an index that is already loaded; None: load the harness's whole index.
    """

    def __init__(self, data: Path | None = None, manager: TaskManager | None = None) -> None:
        if data is not None and not data.is_dir():
            raise CocomixError(f"there is no folder {data}; give --task-data a folder with the tasks' datasets")
        self.data = data
        self.manager = manager or TaskManager()

    def check(self, names: Sequence[str]) -> None:
        """Raise for an unknown name; call it before a model is loaded.

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
            CocomixError: the name is unknown, or the data is missing or cannot be read.
        """
        self.check([name])
        with self._local_data(name):
            try:
                return dict(self.manager.load([name]))
            except CocomixError:
                raise
            except Exception as error:  # datasets raises many unrelated types for one cause
                raise self._unreadable(name, error) from error

    def leaves(self, name: str) -> list[str]:
        """The single tasks behind a task, group or tag."""
        entry = self.manager.task_index.get(name)
        if entry is None:
            return []
        if entry.kind.name == "TAG":
            return [leaf for task in sorted(entry.tags) for leaf in self.leaves(task)]
        if entry.kind.name == "GROUP":
            return [leaf for member in _members(entry.cfg or {}) for leaf in self.leaves(member)]
        return [name]

    @contextmanager
    def _local_data(self, name: str) -> Iterator[None]:
        """Within the context, the index points to YAML files that override where the tasks' data is."""
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
                    changed = {"include": str(entry.yaml_path)} | self._dataset_of(leaf, entry.cfg or {})
                    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
                    entry.yaml_path = path
                yield
            finally:
                for leaf, path in original.items():
                    index[leaf].yaml_path = path

    def _dataset_of(self, task: str, config: dict[str, Any]) -> dict[str, Any]:
        """`dataset_path` and `dataset_name` of a task's data in the local folder."""
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
        cause = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if isinstance(error, KeyError) and error.args[0] in ("train", "validation", "test"):
            cause = f"it has no split {error.args[0]!r}, which the task names"
        datasets = {str((self.manager.task_index[leaf].cfg or {}).get("dataset_path")) for leaf in self.leaves(name)}
        fix = (
            "put it into a folder and give that as --task-data, or connect to the hub"
            if self.data is None
            else f"fix it in {self.data}; Parquet or JSON-lines files named by split are expected"
        )
        return CocomixError(
            f"the data of the task {name} ({', '.join(sorted(datasets))}) cannot be read ({cause}); {fix}"
        )


def _members(config: dict[str, Any]) -> list[str]:
    """Names in a group's `task` list, whose items are names or mappings."""
    listed = config.get("task")
    names = [item if isinstance(item, str) else item.get("task") for item in listed if item] if listed else []
    return [name for name in names if isinstance(name, str)]
