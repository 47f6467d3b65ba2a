"""Make the 164 databases of miniature text-to-SQL: `python data/make_minisql.py [folder]` (default: `minisql` beside this file).

The same bytes on every run. What is in them stands in `dphrl_lite/tasks/minisql.py`.
"""

import sys
from pathlib import Path

from make_databases import HERE, build

from dphrl_lite.tasks import minisql


def main(folder: Path):
    """Write one file per database of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in (index for split in minisql.SPLITS.values() for index in split):
        path = folder / f"{minisql.db_id(index)}.sqlite"
        path.unlink(missing_ok=True)
        # many are shipped: the smallest pages
        build(path, minisql.schema(index).create(), minisql.rows(index), page_size=512)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "minisql")
