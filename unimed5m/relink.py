"""Images and texts back into records that were published without them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.whole_files import replacing

from .publish import check_published
from .record_index import RecordIndex
from .schema import ARROW_SCHEMA
from .shards import batches, is_unfinished, parquet_writer, shards_of_all, unfinished


def relink(published: str | Path, sources: str | Path | Sequence[str | Path], output: str | Path) -> dict[str, int]:
    """Give images and texts back to metadata-only records.

    `sources` holds whole records, one folder or several, built by this package from the sources' own downloads
    (`unimedvl data build`). They are found by id, and only those with the published content hash are taken: what is
    relinked is what was checked. Split and scores are the published ones. Writes `OUTPUT/data/*.parquet` and returns
    how many records were relinked and how many are missing (they are left out).

    Raises:
        ValueError: where `published` was not published, `sources` holds no shards, or `output` holds anything already.
    """
    published, output = Path(published), Path(output)
    check_published(published)
    paths = sorted((published / "metadata").glob("*/*.parquet"))
    targets = [output / "data" / f"{path.parent.name}-{path.name}" for path in paths]
    index = RecordIndex(shards_of_all(sources))
    keep_out_of_git(output)
    earlier = list(output.glob("data/*.parquet"))
    if earlier and not is_unfinished(output, "relink"):
        raise ValueError(f"{output} holds relinked records already; choose another folder, with all sources at once.")
    found = missing = 0
    with unfinished(output, "relink"):
        for path in earlier:
            path.unlink()
        for path, target in zip(paths, targets, strict=True):
            with replacing(target) as partial, parquet_writer(partial, ARROW_SCHEMA) as writer:
                for batch in batches(path):
                    rows = batch.to_pylist()
                    whole = index.find({row["id"]: row["content_hash"] for row in rows})
                    linked = [
                        {**whole[row["id"]], "split": row["split"], "quality": row["quality"]}
                        for row in rows
                        if row["id"] in whole
                    ]
                    found, missing = found + len(linked), missing + len(rows) - len(linked)
                    if linked:
                        writer.write_table(pa.Table.from_pylist(linked, schema=ARROW_SCHEMA))
    return {"relinked": found, "missing": missing}
