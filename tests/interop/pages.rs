//! The report in a real browser: as wide as a phone, in light and in dark, without the network.

use std::process::Command;

use serde_json::Value;

use crate::common::{bt_stream, tiny_run, tiny_shards};
use crate::{browser, done};

/// A page that shows `report` as wide as a phone and writes what it measures into itself.
fn measuring(report: &str) -> String {
    let inside = report.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        r#"<!doctype html><body><p id="found">nothing</p>
        <iframe id="page" width="360" height="800" style="border:0" srcdoc="{inside}"></iframe>
        <script>
        onload = () => {{
            const page = document.getElementById("page").contentDocument;
            const images = [...page.images];
            // As many pixels of the screen as a line of each text is high, drawings' scale
            // included.
            const sizes = [...page.querySelectorAll("body *")]
                .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
                .map(e => parseFloat(page.defaultView.getComputedStyle(e).fontSize)
                    * (e.getScreenCTM ? e.getScreenCTM().a : 1));
            document.getElementById("found").textContent = JSON.stringify({{
                width: page.documentElement.scrollWidth,
                images: images.length,
                smallest: Math.min(...sizes),
                loaded: page.defaultView.performance.getEntriesByType("resource")
                    .map(entry => entry.name).filter(name => !name.startsWith("data:")),
                broken: images.filter(image => !image.complete || image.naturalWidth == 0).length,
                ground: getComputedStyle(page.body).backgroundColor,
                text: getComputedStyle(page.body).color,
            }});
        }};
        </script>"#
    )
}

/// Brightness of `rgb(r, g, b)`, 0 to 255.
fn brightness(colour: &Value) -> f64 {
    let text = colour.as_str().unwrap();
    let parts =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<f64>().ok());
    parts.take(3).sum::<f64>() / 3.0
}

#[test]
fn a_browser_shows_the_page_on_a_phone_in_light_and_in_dark() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    done(tiny_run(&shards, &run).args(["--epochs", "2"]));
    done(bt_stream().arg("report").arg(&run));
    let other = dir.path().join("a-run-with-quite-a-long-name-that-nobody-would-choose");
    done(tiny_run(&shards, &other).args(["--epochs", "1", "--seed", "1"]));
    let both = dir.path().join("both.html");
    done(bt_stream().arg("report").args([&run, &other]).arg("--out").arg(&both));
    for (page, images) in [(run.join("report.html"), 12 * 3 + 2), (both, 4)] {
        let wrapper = dir.path().join("wrapper.html");
        std::fs::write(&wrapper, measuring(&std::fs::read_to_string(&page).unwrap())).unwrap();
        for (scheme, setting) in [("dark", 0), ("light", 1)] {
            let mut browse = Command::new(&browser);
            browse.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
            browse.args(["--virtual-time-budget=5000", "--window-size=800,900"]);
            browse.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
            browse.arg(format!("--blink-settings=preferredColorScheme={setting}"));
            let dom = done(browse.arg(format!("file://{}", wrapper.display())));
            let found =
                dom.split("id=\"found\">").nth(1).and_then(|rest| rest.split("</p>").next());
            let found: Value = serde_json::from_str(found.unwrap()).expect("the page was loaded");
            assert!(found["width"].as_f64().unwrap() <= 360.0, "it is wider than a phone: {found}");
            assert!(found["smallest"].as_f64().unwrap() >= 8.0, "text too small to read: {found}");
            assert_eq!(found["loaded"], serde_json::json!([]), "it loads what is not in it");
            assert_eq!((&found["images"], &found["broken"]), (&images.into(), &0.into()));
            let (ground, text) = (brightness(&found["ground"]), brightness(&found["text"]));
            assert!((scheme == "dark") == (ground < text), "{scheme}: {found}");
        }
    }
    println!("{browser}: both kinds of page fit a phone, in light and in dark");
}
