"""Draw five characters that no training has seen: some drawings of each to learn from, and others to recognise.

python examples/draw_new_glyphs.py FOLDER      writes FOLDER/support/NAME/*.png and FOLDER/query/NAME-*.png
"""

import sys
from pathlib import Path

from PIL import Image

from quickstudy.tasks.images.glyphs import draw_glyphs

SHOTS, QUERIES = 1, 2
NAMES = ("alef", "bira", "cumo", "deth", "esk")  # made-up names of made-up characters


def main(folder: Path) -> None:
    drawings = draw_glyphs(classes=len(NAMES), drawers=SHOTS + QUERIES, seed=2026)
    for name, pictures in zip(NAMES, drawings, strict=True):
        for i, picture in enumerate(pictures):
            path = folder / ("support" if i < SHOTS else "query")
            path = path / name / f"{i}.png" if i < SHOTS else path / f"{name}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - picture.numpy()).resize((112, 112)).save(path)  # dark ink on white paper
    print(f"drew {len(NAMES)} new characters into {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
