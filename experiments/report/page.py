"""The report as one HTML page that needs nothing beside it but the runs that it links to."""

import base64
import pathlib

from experiments.report.collect import KEPT
from experiments.report.figures import FIGURES, Picture
from experiments.report.report import EXPORTS, PUBLISHED, Report, link


def render(report: Report) -> str:
    """Returns the page, its figures within it."""
    import jinja2  # of the extra `experiments`

    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)

    def embedded(picture: Picture) -> str:
        content = (report.folder / FIGURES / picture.file).read_bytes()
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    template = environment.get_template("page.html")
    return (
        template.render(report=report, published=PUBLISHED, exports=EXPORTS, kept=KEPT, link=link, embedded=embedded)
        + "\n"
    )
