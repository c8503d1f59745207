"""What a record needs beyond the form that `Record.validate` checks, so that every trainer can read it."""

import unicodedata

from .schema import IMAGE_PLACEHOLDER, Record


def check_trainable(record: Record) -> None:
    """Check that every turn says something: a text, or an output image.

    Records of other people's files may lack that and keep their form; those that are built here do not.

    Raises:
        ValueError: with one line that names the turn.
    """
    for index, turn in enumerate(record.message):
        shows = turn.role == "gpt" and (IMAGE_PLACEHOLDER in turn.value or record.output_img)
        # Zero-width characters and marks of direction show nothing.
        seen = "".join(character for character in turn.value if unicodedata.category(character) != "Cf")
        if not shows and not seen.replace(IMAGE_PLACEHOLDER, "").strip():
            raise ValueError(
                f"record {record.id!r}: message[{index}].value: expected a text of {turn.role}, found {turn.value!r}."
            )
