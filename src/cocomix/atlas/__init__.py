"""What each concept of a student is: found once from held-out text, kept with the run, looked up afterwards.

    atlas = build(student, shards, key, labels=reader, truth="exact/absolute labels")
    write_atlas(path, atlas)
    atlas = read_atlas(path, key)              # None where there is none, or it is of something else

`pipeline.atlas_command.student_atlas(stage, student)` does all of it for a student of a run. Then, with `names` from
`names.read_names` (or `Names(None, {})`):

    catalogue = Catalogue(atlas, names)                                  # once; searching and sorting after that
    catalogue.listing(q="war", sort="predicted", offset=0, limit=50)     # -> Listing
    catalogue.rename(names.of(12))                                       # after an edit
    dashboards = Dashboards(atlas, student, shards, decode)              # once a student
    dashboards.of(12, names)                                             # -> Dashboard

Nothing here holds a lock. `Dashboards.of` steers the student for a moment (`measured`), so whoever shares the student
between threads calls it under the lock that generation takes.
"""

from cocomix.atlas.dashboard import Dashboard, Dashboards
from cocomix.atlas.effects import measured, promoted
from cocomix.atlas.gather import TOKENS, build
from cocomix.atlas.listing import SORTS, Catalogue, ConceptRow, Listing
from cocomix.atlas.record import Atlas, AtlasKey, read_atlas, write_atlas

__all__ = [
    "SORTS",
    "TOKENS",
    "Atlas",
    "AtlasKey",
    "Catalogue",
    "ConceptRow",
    "Dashboard",
    "Dashboards",
    "Listing",
    "build",
    "measured",
    "promoted",
    "read_atlas",
    "write_atlas",
]
