"""Pictures in rows and columns with readable labels: one PNG that shows what a setting does."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (250, 250, 248)
INK = (35, 35, 40)
FAINT = (110, 110, 118)
EDGE = (218, 218, 214)
SMALL = 256  # pictures up to this many pixels wide are enlarged
CELL = 160  # ... to about this many


def scale_for(width: int) -> int:
    """The whole factor that brings a small picture to about `CELL` pixels; 1 for those above `SMALL`."""
    return max(1, CELL // width) if width <= SMALL else 1


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    scale: int = 2,
    title: str | None = None,
) -> Image.Image:
    """Lay pictures out in a labelled grid.

    Args:
        rows: rows of pictures, all equally long. Sizes may differ; pictures are centred in their cells.
        row_labels: one label per row, wrapped to a few words per line; line breaks are kept. "" is no label.
        column_labels: one heading per column, wrapped to the column's width.
        scale: whole factor by which pictures are enlarged (Lanczos), default 2, at least 1. 64 px pictures read well
            at 2 or 3; use 1 from 256 px on.
        title: a line above everything, wrapped to the grid's width; default none.

    Returns:
        An RGB picture on a light background. Transparent pictures are shown on that background.

    Raises:
        ValueError: no pictures, rows of different length, a wrong number of labels, or a scale below 1.
    """
    _check(rows, row_labels, column_labels, scale)
    cells = [[_enlarged(picture, scale) for picture in row] for row in rows]
    widths = [max(row[x].width for row in cells) for x in range(len(cells[0]))]
    heights = [max(picture.height for picture in row) for row in cells]

    size = min(max(max(widths) // 10, 14), 40)
    gap = max(size // 2, 6)
    font = ImageFont.load_default(size)
    title_font = ImageFont.load_default(round(size * 1.25))
    headings = [_wrap(label, font, width) for label, width in zip(column_labels, widths, strict=True)]
    sides = [_wrap(label, font, max(11 * size, max(widths))) for label in row_labels]

    side = max(_width(text, font) for text in sides)
    side += 2 * gap if side else 0
    inner = side + sum(widths) + gap * (len(widths) - 1)
    title_text = _wrap(title, title_font, inner) if title else ""
    title_height = _height(title_text, title_font) + 2 * gap if title_text else 0
    heading_height = max(_height(text, font) for text in headings)
    heading_height += gap if heading_height else 0
    heights = [max(height, _height(text, font)) for height, text in zip(heights, sides, strict=True)]

    margin = 2 * gap
    canvas = Image.new(
        "RGB",
        (inner + 2 * margin, title_height + heading_height + sum(heights) + gap * (len(heights) - 1) + 2 * margin),
        BACKGROUND,
    )
    pen = ImageDraw.Draw(canvas)
    if title_text:
        pen.multiline_text((margin, margin), title_text, INK, title_font)

    top = margin + title_height
    left = margin + side
    for text, width in zip(headings, widths, strict=True):
        # Headings stand on the pictures, so they share the lower edge.
        pen.multiline_text((left + width / 2, top + heading_height - gap), text, INK, font, anchor="md", align="center")
        left += width + gap

    top += heading_height
    for row, text, height in zip(cells, sides, heights, strict=True):
        pen.multiline_text((margin + side - 2 * gap, top + height / 2), text, FAINT, font, anchor="rm", align="right")
        left = margin + side
        for picture, width in zip(row, widths, strict=True):
            x, y = left + (width - picture.width) // 2, top + (height - picture.height) // 2
            # An outline just outside: pictures on white would melt into the background.
            pen.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=EDGE)
            canvas.paste(picture, (x, y))
            left += width + gap
        top += height + gap
    return canvas


def _check(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], scale: int
) -> None:
    if not rows or not rows[0]:
        raise ValueError("labelled_grid got no pictures; give at least one row with one picture")
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(f"labelled_grid got rows of {lengths} pictures; all rows must be equally long")
    if len(row_labels) != len(rows):
        raise ValueError(
            f"labelled_grid got {len(row_labels)} row labels for {len(rows)} rows; give one each, '' for none"
        )
    if len(column_labels) != lengths[0]:
        raise ValueError(
            f"labelled_grid got {len(column_labels)} column labels for {lengths[0]} columns; give one each, '' for none"
        )
    if type(scale) is not int or scale < 1:
        raise ValueError(f"labelled_grid got scale {scale!r}; expected a whole number of at least 1")


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    if picture.mode != "RGB":
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, BACKGROUND)
        picture = Image.alpha_composite(ground, picture).convert("RGB")
    if scale == 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Break lines between words so that none is wider than `width` px; a word that is too long is broken inside."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width and len(word) > 1:
                fits = 1
                while font.getlength(word[: fits + 1]) <= width:
                    fits += 1
                lines += [line, word[:fits]] if line else [word[:fits]]
                line, word = "", word[fits:]
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return "\n".join(lines)


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return max((round(font.getlength(line) + 0.5) for line in text.splitlines()), default=0)


def _height(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    if not text:
        return 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return round(box[3] + 0.5)
