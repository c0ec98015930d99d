"""The page of a report in a headless browser, on a phone's and on a desk's screen."""

import contextlib
import functools
import http.server
import shutil
import threading

import pytest

pytest.importorskip("statsmodels")
pytest.importorskip("jinja2")

import report_case

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def _served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, tmp_path_factory, width, scheme):
    folder, _ = report_case.reported(tmp_path_factory.getbasetemp())
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    browser.get((folder / "report.html").as_uri())
    for opened in (False, True):
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = arguments[0])", opened)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return window.innerWidth") == width
    assert (
        browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True] * 10
    )
    assert browser.execute_script("return document.querySelectorAll('table').length") == 5
    widest = "return Math.max(...[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth))"
    assert browser.execute_script(widest) > (0 if width < 500 else -1)
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert browser.get_log("browser") == []


def test_links_work_in_a_browser(browser, tmp_path_factory):
    _, published = report_case.reported(tmp_path_factory.getbasetemp())
    with _served(published) as address:
        browser.get(f"{address}/report.html")
        links = browser.execute_script("return [...document.querySelectorAll('a')].map(a => a.href)")
        links = sorted({link for link in links if "#" not in link})
        assert len(links) == 3 * (7 + 1) + 10  # the runs and their teacher; figures
        fetch = "const [u, done] = arguments; Promise.all(u.map(x => fetch(x).then(r => r.status))).then(done)"
        assert browser.execute_async_script(fetch, links) == [200] * len(links)
        assert browser.get_log("browser") == []
