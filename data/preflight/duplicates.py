"""Preflight of repetition: rows that occur twice, and rows or images that are held out and trained on."""

from collections.abc import Iterable, Mapping, Sequence

from vlm_entropy.data.rows import Row

from .report import ImageFile, Section, listed, rows_of

Key = tuple[tuple[str, ...], str]
"""What the model sees of a row: the content of its images, in order, and the question."""


def key_of(row: Row, files: Mapping[str, ImageFile]) -> Key:
    """Images with equal bytes are equal, whatever their names."""
    return tuple(files[path].digest for path in row.images), row.question


def groups_of(rows: Iterable[Row], files: Mapping[str, ImageFile]) -> list[list[Row]]:
    """The rows with equal images and question, each group of at least two, in order of their first row."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row, files), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def duplicates_section(
    rows: Sequence[Row], files: Mapping[str, ImageFile], *, held_out: Sequence[Row] | None, bad_held_out: int = 0
) -> Section:
    """Repeated rows, contradictions among them, and what the held-out rows share with the training rows.

    Args:
        rows: training rows.
        files: the image files of both.
        held_out: rows to evaluate on, None if there are none to compare with.
        bad_held_out: number of further ones that cannot be used.
    """
    groups = groups_of(rows, files)
    repeated = sum(len(group) - 1 for group in groups)
    mixed = [group for group in groups if len({row.answer for row in group}) > 1]
    section = Section("Duplicates")
    section.lines += [
        f"rows with the images and the question of an earlier row: {repeated}",
        f"questions with different answers: {len(mixed)}",
    ]
    if mixed:
        section.lines.append(f"different answers: {listed([row.source for group in mixed for row in group])}")
        section.warnings.append(f"questions on equal images with different answers: {len(mixed)}")
    if repeated:
        section.warnings.append(f"rows that repeat the images and the question of an earlier one: {repeated}")
    if held_out is not None:
        _add_overlap(section, rows, held_out, files)
    if bad_held_out:
        section.warnings.append(f"held-out rows that cannot be used: {bad_held_out}")
    return section


def _add_overlap(
    section: Section, rows: Sequence[Row], held_out: Sequence[Row], files: Mapping[str, ImageFile]
) -> None:
    seen_images = {files[path].digest for row in rows for path in row.images}
    seen_keys = {key_of(row, files) for row in rows}
    images = [row.source for row in held_out if any(files[path].digest in seen_images for path in row.images)]
    same = [row.source for row in held_out if key_of(row, files) in seen_keys]
    section.lines += [
        f"held out: {rows_of(len(held_out))}",
        f"held-out rows with an image of a training row: {len(images)}",
        f"held-out rows with the images and the question of a training row: {len(same)}",
    ]
    if images or same:
        sources = list(dict.fromkeys([*same, *images]))
        section.lines.append(f"not held out: {listed(sources)}")
        section.warnings.append(f"held-out rows that share images or questions with the training rows: {len(sources)}")
