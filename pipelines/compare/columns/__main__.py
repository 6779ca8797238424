"""`python -m pipelines.compare.columns` writes docs/columns.md."""

from pipelines.compare.columns.page import PATH, page
from pipelines.lake.files import write_text

if __name__ == "__main__":
    write_text(PATH, page())
    print(PATH)
