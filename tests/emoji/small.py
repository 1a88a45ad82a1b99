"""A dozen icons of each set, packed as npm does; `icons/*.json` name their artists and licences."""

import io
import json
import tarfile
from pathlib import Path

_ICONS = Path(__file__).parent / "icons"


def pack(folder: Path) -> Path:
    """Write the four archives into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(_ICONS.glob("*.json")):
        with tarfile.open(folder / f"iconify-json-{path.stem}-1.2.0.tgz", "w:gz") as archive:
            for name, value in json.loads(path.read_text()).items():
                content = json.dumps(value).encode()
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return folder
