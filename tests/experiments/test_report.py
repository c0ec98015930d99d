"""What a report says, links to and shows, of a grid's folder that is written by hand."""

import base64
import io
import math
import re
import urllib.parse

import numpy as np
import pytest
import scipy.stats
from PIL import Image

pytest.importorskip("statsmodels")
pytest.importorskip("jinja2")

import report_case
from report_case import BASE, CELLS, EPOCHS

from experiments.report import weights
from experiments.report.collect import KEPT, collect


@pytest.fixture
def folder(tmp_path_factory):
    return report_case.reported(tmp_path_factory.getbasetemp())[0]


@pytest.fixture
def published(tmp_path_factory):
    return report_case.reported(tmp_path_factory.getbasetemp())[1]


@pytest.fixture
def page(folder):
    return report_case.Page((folder / "report.html").read_text())


def _table(page, place=0):
    heads, *rows = page.tables[place]
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def test_means_and_differences(page):
    rows = _table(page)
    assert list(rows) == ["kd, constant", "kd, gompertz", "kd, gompertz_adaptive", "alone, <none> & nothing"]
    accuracies = 100 * np.asarray(BASE)
    assert rows["kd, constant"]["test, last epoch (%)"] == f"{accuracies.mean():.2f} ± {accuracies.std(ddof=1):.2f}"
    assert rows["kd, constant"]["n"] == "3"
    assert rows["kd, constant"]["difference to the baseline (points) [95 % interval]"] == "baseline"
    gains = {name: 100 * np.asarray(CELLS[name][3]) for name in ("kd-gompertz", "kd-adaptive")}
    half = {name: scipy.stats.t.ppf(0.975, 2) * d.std(ddof=1) / math.sqrt(3) for name, d in gains.items()}
    p = {name: scipy.stats.ttest_1samp(d, 0.0).pvalue for name, d in gains.items()}
    low, high = 0.9 - half["kd-gompertz"], 0.9 + half["kd-gompertz"]
    found = rows["kd, gompertz"]
    assert found["difference to the baseline (points) [95 % interval]"] == f"+0.90 [+{low:.2f}, +{high:.2f}]"
    assert found["p (Holm)"] == f"{2 * p['kd-gompertz']:.3f}"
    assert p["kd-gompertz"] < p["kd-adaptive"]
    found = rows["kd, gompertz_adaptive"]
    mean = gains["kd-adaptive"].mean()
    low, high = mean - half["kd-adaptive"], mean + half["kd-adaptive"]
    assert found["difference to the baseline (points) [95 % interval]"] == f"+{mean:.2f} [−{-low:.2f}, +{high:.2f}]"
    assert found["p (Holm)"] == f"{p['kd-adaptive']:.3f}"


def test_a_single_seed_has_no_difference(page):
    row = _table(page)["alone, <none> & nothing"]
    assert row["test, last epoch (%)"] == "63.10"
    assert row["n"] == "1"
    assert row["difference to the baseline (points) [95 % interval]"] == "–"
    assert row["p (Holm)"] == "–"
    assert row["agreement with the teacher (%)"] == "–"
    assert "fewer than two seeds are the baseline's too: alone, <none> & nothing." in page.text


def test_last_and_best_validation(page):
    row = _table(page)["kd, gompertz"]
    ours = 100 * (np.asarray(BASE) + CELLS["kd-gompertz"][3])
    last = ours * (1 - math.exp(-EPOCHS))
    assert row["validation, last epoch (%)"] == f"{last.mean():.2f} ± {last.std(ddof=1):.2f}"
    best = ours + 0.4
    assert row["validation, best epoch (%)"] == f"{best.mean():.2f} ± {best.std(ddof=1):.2f} (epoch 4)"


def test_the_rest_of_a_row(page):
    row = _table(page)["kd, constant"]
    assert row["published test (%)"] == "70.66 (last of 240)"
    assert row["ECE (%)"] == "3.20 ± 0.10"
    assert row["NLL (nats)"] == "1.210 ± 0.010"
    assert row["agreement with the teacher (%)"] == "78.00 ± 1.00"
    assert row["top-5 (%)"] == "78.20 ± 0.66"
    assert row["training (s)"] == "780"
    assert row["images/s"] == "904"
    assert row["run"] == "config summary metrics"
    assert "Teacher resnet56: 72.34 % of the test images; published 72.34 (last of 240)." in page.text
    assert f"teachers/{report_case.TEACHER}/config.json" in page.links
    assert not any("of-no-run" in link for link in page.links)
    assert "published by RepDistiller README; this run changes the recipe: epochs: 240 -> 6" in page.text


def test_compilation_and_the_teachers_cache_are_no_training(folder, page):
    """780 s, of which 30 were compilation and 40 + 5 · 2 the filling; the other runs did not record them."""
    rows = _table(page)
    assert (rows["kd, gompertz"]["training (s)"], rows["kd, gompertz"]["teacher's cache (s)"]) == ("700", "50")
    assert (rows["kd, constant"]["training (s)"], rows["kd, constant"]["teacher's cache (s)"]) == ("780", "–")
    (alt,) = (
        i["alt"] for i in page.images if "over the time that training took" in i["alt"] and "adaptive" in i["alt"]
    )
    assert re.search(r"kd, constant: [^;]* after 780 s; kd, gompertz: [^;]* after 700 s", alt)
    text = (folder / "report.md").read_text()
    assert text.count("without the filling of the teacher's cache, which the first cell pays for all") >= 2


def test_columns_without_numbers_are_left_out(page):
    assert "teacher's cache (s)" not in page.tables[2][0]
    assert "published test (%)" in page.tables[0][0]
    assert "published test (%)" not in page.tables[2][0]  # of CIFAR-10


def test_single_seeds(page):
    heads, *rows = page.tables[1]
    assert len(rows) == 10
    assert [row[1] for row in rows[:3]] == ["0", "1", "2"]
    assert [row[heads.index("test, last epoch (%)")] for row in rows[:3]] == ["68.10", "68.90", "67.60"]
    assert rows[0][heads.index("best epoch")] == "4"


def test_what_has_no_result_is_listed(folder, page):
    text = (folder / "report.md").read_text()
    for said in (page.text, text):
        assert "Without a result: 1 failed, 1 not started; 7 of 9 cells are finished." in said
        assert "line one" in said
    assert "second-kd-adaptive, failed: its loss <became> NaN & stopped" in page.text
    assert "late, not started" in page.text
    assert "`second-kd-adaptive`, failed: its loss &lt;became&gt; NaN &amp; stopped" in text
    assert [row[0] for row in page.tables[2][1:]] == ["kd, constant", "kd, gompertz", "alone, <none> & nothing"]


def test_first_line_and_origin(folder, page):
    first = (folder / "report.md").read_text().splitlines()[0]
    assert first == (
        "# Weights &lt;b&gt;compared&lt;/b&gt; &amp; more, 5,000 images \\| 6 epochs "
        "(1 × Accelerator &lt;9000&gt; (gpu))"
    )
    head = " ".join(page.text.split("<b>compared</b>")[2].split("How to read")[0].split())
    assert head.startswith("& more, 5,000 images | 6 epochs 1 × Accelerator <9000> (gpu) Without a result: 1 failed")
    hashes = {run.name: run.summary["config_hash"] for run in collect(folder).runs}
    assert {row[0]: row[1] for row in page.tables[-1][1:]} == hashes
    assert "--out <here>" in page.text
    assert "statsmodels" in page.text
    assert "b" not in page.tags  # markup in names is text
    assert "small" in page.tags  # the page's own is none


def _targets(links):
    return {urllib.parse.unquote(link) for link in links if not link.startswith("#")}


@pytest.mark.parametrize("place", ["folder", "published"])
def test_links_lead_somewhere(folder, page, place, request):
    base = request.getfixturevalue(place)
    in_text = re.findall(r"\]\(([^)]*)\)", (base / "report.md").read_text())
    assert (base / "report.html").read_text() == (folder / "report.html").read_text()
    wanted = {f"runs/{run.name}/{file}" for run in collect(folder).runs for file in KEPT}
    for targets in (_targets(page.links), _targets(in_text)):
        assert wanted <= targets
        assert [target for target in targets if not (base / target).is_file()] == []
    anchors = {link for link in page.links if link.startswith("#")}
    assert anchors >= {"#missing", "#01-resnet56-to-resnet20-cifar100"}
    for anchor in anchors:
        assert f'id="{anchor[1:]}"' in (base / "report.html").read_text()


def test_figures(folder, page):
    files = sorted((folder / "figures").iterdir())
    kinds = ("differences", "measures", "stages", "wall-time", "weights")
    assert [file.name.split("-", 1)[0] for file in files] == ["01"] * 5 + ["02"] * 5
    assert [file.stem.endswith(kinds) for file in files] == [True] * 10
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5
    assert len(page.images) == 10
    for image in page.images:
        assert len(image["alt"]) > 60
        head, _, content = image["src"].partition(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    assert "kd, gompertz: +0.90 [" in page.images[0]["alt"]
    text = (folder / "report.md").read_text()
    for file in files:
        assert f"](figures/{file.name})" in text


def test_the_page_needs_nothing_else(folder):
    text = (folder / "report.html").read_text()
    assert "<script" not in text
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "url(" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_number_is_a_number(folder, page):
    assert not [cell for rows in page.tables for row in rows for cell in row if re.search(r"\b(nan|inf|None)\b", cell)]
    assert not [image["alt"] for image in page.images if re.search(r"\b(nan|inf|None)\b", image["alt"])]


def test_weights_are_the_schedules_or_what_was_recorded(folder):
    runs = {run.name: run for run in collect(folder).runs}
    plain = weights.curves(runs["first-kd-gompertz"])
    weight = runs["first-kd-gompertz"].config["objective"]["terms"]["kd"]["weight"]
    curve = plain["kd"]
    np.testing.assert_allclose(curve.mean, weight * np.exp(-np.exp(-10 * (curve.t - 0.3))), atol=1e-6)
    np.testing.assert_allclose(curve.mean[-1], weight * math.exp(-math.exp(-7)), rtol=1e-5)
    bend = math.log((3 + math.sqrt(5)) / 2) / 10
    np.testing.assert_allclose(curve.bounds, (0.3 - bend, 0.3 + bend), rtol=1e-6)
    assert plain["ce"].bounds is None
    fitted = weights.curves(runs["first-kd-adaptive"])
    assert len(fitted["kd"].t) == EPOCHS
    assert len(fitted["wasserstein"].t) > EPOCHS
    assert fitted["kd"].std.max() > 0
    assert fitted["kd"].bounds == pytest.approx((19 / 60, 29 / 60))  # ends of the epochs in which the stage was another
    assert fitted["kd"].bounds is not None
