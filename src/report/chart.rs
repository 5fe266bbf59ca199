//! Line charts as inline SVG: colours come from the page's style sheet, so that
//! they follow light and dark mode.

use std::fmt::Write as _;

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// (x, y), x rising.
    pub points: Vec<(f64, f64)>,
}

/// A chart of a few lines over one axis.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Under the x axis.
    pub x_label: String,
    /// A logarithmic x axis; points that are not positive are left out.
    pub log_x: bool,
    /// A logarithmic y axis; points that are not positive are left out.
    pub log_y: bool,
    /// y is a share, 0 to 1, and shown as a percentage.
    pub percent: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// Colours of lines in the style sheet, `s0` and so on.
const COLOURS: usize = 8;

/// The drawing's size in its own units; the page scales it to its column. Small, so
/// that the letters stay readable on a phone.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;

/// Columns of the drawing of which a line keeps its extremes: two for each unit, as a page that is
/// twice as wide has pixels.
const COLUMNS: f64 = 2.0 * (WIDTH - LEFT - RIGHT);

/// The least and the largest magnitudes that an axis ends at: spans and steps between them are
/// numbers, too.
const LEAST: f64 = 1e-300;
const MOST: f64 = 1e300;

/// Powers of ten that have a tick on a logarithmic axis at most.
const MOST_POWERS: usize = 15;

/// The range of an axis and how values lie on it.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Chart {
    /// A chart over the epochs of training, both axes linear.
    pub fn over_epochs(title: &str, series: Vec<Series>) -> Self {
        Chart { title: title.into(), x_label: "epoch".into(), series, ..Chart::default() }
    }

    /// The same, y shown as a percentage.
    pub fn as_percent(self) -> Self {
        Chart { percent: true, ..self }
    }

    /// The same with a logarithmic y axis, where every y is above 0: it would leave out the others,
    /// and some objectives' losses (cosine similarities, differences of entropies) are below 0
    /// throughout.
    pub fn log_y_if_positive(self) -> Self {
        let mut heights = self.series.iter().flat_map(|series| &series.points).map(|point| point.1);
        let log_y = heights.all(|y| y > 0.0 || !y.is_finite());
        Chart { log_y, ..self }
    }

    /// The chart as a `<figure>`; empty when no line has two points.
    pub fn svg(&self) -> String {
        let drawn: Vec<(usize, Vec<(f64, f64)>)> = (0..self.series.len())
            .map(|i| (i, self.usable(&self.series[i].points)))
            .filter(|(_, points)| points.len() > 1)
            .collect();
        let all = || drawn.iter().flat_map(|(_, points)| points.iter().copied());
        let (Some(x), Some(y)) = (
            Axis::over(all().map(|p| p.0), self.log_x),
            Axis::over(all().map(|p| p.1), self.log_y),
        ) else {
            return String::new();
        };
        let mut out = format!(
            "<figure class=\"chart\"><figcaption>{}</figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title),
            escape(&self.title)
        );
        self.axes(&mut out, &x, &y);
        for (i, points) in &drawn {
            let mut path = String::new();
            for (px, py) in thinned(points, &x) {
                let (px, py) = (horizontal(&x, px), vertical(&y, py));
                let verb = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{verb}{px:.1} {py:.1}");
            }
            let _ = write!(out, "<path class=\"line s{}\" d=\"{path}\"/>", i % COLOURS);
        }
        out.push_str("</svg><div class=\"legend\">");
        for (i, _) in &drawn {
            let name = escape(&self.series[*i].name);
            let _ = write!(out, "<span><i class=\"s{}\"></i>{name}</span>", i % COLOURS);
        }
        out.push_str("</div></figure>\n");
        out
    }

    /// The chart as a file of its own, on white, with its title and legend; nothing where
    /// [`Chart::svg`] draws nothing.
    pub fn svg_file(&self) -> Option<String> {
        const COLOURS_ON_WHITE: [&str; COLOURS] = [
            "#c2410c", "#1d6fd1", "#15803d", "#7c3aed", "#0f766e", "#be185d", "#a16207", "#475569",
        ];
        let figure = self.svg();
        let (_, drawing) = figure.split_once("role=\"img\"")?;
        let (_, drawing) = drawing.split_once('>')?;
        let (drawing, _) = drawing.split_once("</svg>")?;
        let head = 22.0 + 16.0 * self.series.len() as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 {} {WIDTH} {}\" width=\"{WIDTH}\">\n\
             <style>text{{font:12px sans-serif;fill:#5d6675}}.grid{{stroke:#dde1e8;fill:none}}\
             .line{{fill:none;stroke-width:1.8}}",
            -head,
            HEIGHT + head
        );
        for (i, colour) in COLOURS_ON_WHITE.iter().enumerate() {
            let _ = write!(out, ".s{i}{{stroke:{colour}}}");
        }
        let _ = write!(
            out,
            "</style>\n<rect x=\"0\" y=\"{}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"{}\">{}</text>\n",
            -head,
            HEIGHT + head,
            14.0 - head,
            escape(&self.title)
        );
        for (i, series) in self.series.iter().enumerate() {
            let y = 32.0 - head + 16.0 * i as f64;
            let _ = writeln!(
                out,
                "<path class=\"line s{}\" d=\"M{LEFT} {}h14\"/><text x=\"{}\" y=\"{y}\">{}</text>",
                i % COLOURS,
                y - 4.0,
                LEFT + 20.0,
                escape(&series.name)
            );
        }
        Some(out + drawing + "</svg>\n")
    }

    fn usable(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let fits = |p: &&(f64, f64)| {
            let positive = (!self.log_x || p.0 > 0.0) && (!self.log_y || p.1 > 0.0);
            p.0.is_finite() && p.1.is_finite() && positive
        };
        points.iter().filter(fits).copied().collect()
    }

    fn axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        for tick in &y.ticks {
            let at = vertical(y, *tick);
            let text =
                if self.percent { format!("{}%", number(100.0 * tick)) } else { number(*tick) };
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            );
        }
        let bottom = HEIGHT - BOTTOM;
        for tick in &x.ticks {
            let at = horizontal(x, *tick);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{at:.1} {bottom}v4\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                number(*tick)
            );
        }
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 4.0,
            escape(&self.x_label)
        );
    }
}

/// What a drawing can show of a long line: of the points in one column the first, the lowest, the
/// highest and the last. A million lines of metrics would make a page of 80 MB.
fn thinned(points: &[(f64, f64)], x: &Axis) -> Vec<(f64, f64)> {
    let column = |point: &(f64, f64)| (x.share(point.0) * COLUMNS) as i64;
    let mut out = Vec::new();
    for group in points.chunk_by(|a, b| column(a) == column(b)) {
        let by_height = |a: &&usize, b: &&usize| group[**a].1.total_cmp(&group[**b].1);
        let all: Vec<usize> = (0..group.len()).collect();
        let ends = [all.first(), all.last()];
        let extremes = [all.iter().min_by(by_height), all.iter().max_by(by_height)];
        let mut kept: Vec<usize> = ends.into_iter().chain(extremes).flatten().copied().collect();
        kept.sort_unstable();
        kept.dedup();
        out.extend(kept.into_iter().map(|at| group[at]));
    }
    out
}

fn horizontal(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)
}

fn vertical(axis: &Axis, value: f64) -> f64 {
    TOP + (1.0 - axis.share(value)) * (HEIGHT - TOP - BOTTOM)
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, log: bool) -> Option<Axis> {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return None;
        }
        Some(if log {
            Axis::log(low.clamp(LEAST, MOST), high.clamp(LEAST, MOST))
        } else {
            Axis::linear(low.clamp(-MOST, MOST), high.clamp(-MOST, MOST))
        })
    }

    /// About five steps of 1, 2 or 5 times a power of ten.
    fn linear(low: f64, high: f64) -> Axis {
        let span = if high - low > LEAST { high - low } else { high.abs().max(1.0) };
        let power = 10f64.powf((span / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| span / s <= 5.5);
        let step = step.unwrap_or(power);
        let first = (low / step).floor() as i64;
        let last = ((high / step).ceil() as i64).max(first + 1);
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        Axis { low: first as f64 * step, high: last as f64 * step, log: false, ticks }
    }

    /// Ticks at 1, 2 and 5 times powers of ten, or at powers alone when there are many; at even
    /// steps where fewer than two of these lie on the axis.
    fn log(low: f64, high: f64) -> Axis {
        let (low, high) = (low / 1.08, high * 1.08);
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let all: Vec<f64> = powers
            .flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p)))
            .filter(|tick| (low..=high).contains(tick))
            .collect();
        let round = |tick: &f64| (tick.log10() - tick.log10().round()).abs() < 1e-9;
        let ticks = match all.len() {
            0 | 1 => {
                let even = Axis::linear(low, high).ticks.into_iter();
                even.filter(|tick| (low..=high).contains(tick)).collect()
            }
            2..=7 => all,
            _ => {
                let few: Vec<f64> = all.into_iter().filter(round).collect();
                let each = few.len().div_ceil(MOST_POWERS);
                few.into_iter().step_by(each).collect()
            }
        };
        Axis { low, high, log: true, ticks }
    }

    /// Where `value` lies between the axis' ends, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let place = |v: f64| if self.log { v.ln() } else { v };
        let length = (place(self.high) - place(self.low)).max(LEAST);
        let share = (place(value) - place(self.low)) / length;
        // What lies beyond `LEAST` and `MOST` is drawn at the edge.
        share.clamp(0.0, 1.0)
    }
}

/// A number without needless digits: with a power of ten below 0.001 and from a million on.
fn number(value: f64) -> String {
    let short = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    match value.abs() {
        0.0 => "0".into(),
        0.001..10_000.0 => short(&format!("{value:.6}")),
        10_000.0..1e6 => format!("{}k", short(&format!("{:.6}", value / 1000.0))),
        _ => {
            let text = format!("{value:.6e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", short(digits))
        }
    }
}

/// Text made safe between tags and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, log_y: bool) -> Chart {
        let series = vec![Series { name: "a < b".into(), points }];
        Chart { title: "loss".into(), log_y, series, ..Chart::default() }
    }

    #[test]
    fn every_point_lies_within_the_drawing() {
        for log_y in [false, true] {
            let points = (1..50).map(|i| (f64::from(i), 300.0 / f64::from(i) - 7.0)).collect();
            let svg = chart(points, log_y).svg();
            let path = svg.split("class=\"line s0\" d=\"M").nth(1).unwrap();
            let path = &path[..path.find('"').unwrap()];
            for pair in path.split('L') {
                let (x, y) = pair.split_once(' ').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
                assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{y}");
            }
            assert!(svg.contains("a &lt; b"));
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        assert_eq!(chart(vec![], false).svg(), "");
        assert_eq!(chart(vec![(0.0, f64::NAN), (1.0, 1.0)], false).svg(), "");
        assert_eq!(chart(vec![(0.0, -1.0), (1.0, 0.0)], true).svg(), "");
    }

    #[test]
    fn a_line_below_zero_is_drawn_on_a_linear_axis() {
        let line = |points: Vec<(f64, f64)>| {
            Chart::over_epochs("loss", vec![Series { name: "loss".into(), points }])
        };
        let falling = line(vec![(0.0, -0.1), (1.0, -0.9)]).log_y_if_positive();
        assert!(!falling.log_y && falling.svg().contains("class=\"line s0\""));
        // What is no number decides nothing.
        assert!(line(vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, 1.0)]).log_y_if_positive().log_y);
        assert!(!line(vec![(0.0, 2.0), (1.0, 0.0)]).log_y_if_positive().log_y);
    }

    #[test]
    fn a_file_of_its_own_has_the_drawing_its_legend_and_colours() {
        let file = chart(vec![(1.0, 2.0), (2.0, 3.0)], false).svg_file().unwrap();
        assert!(file.starts_with("<svg xmlns=") && file.ends_with("</svg>\n"));
        assert_eq!(file.matches("class=\"line s0\"").count(), 2);
        assert!(file.contains("a &lt; b") && file.contains(".s0{stroke:#"));
        assert_eq!(file.matches("<svg").count(), 1);
        assert!(chart(vec![], false).svg_file().is_none());
    }

    #[test]
    fn a_flat_line_has_an_axis() {
        assert!(chart(vec![(0.0, 5.0), (1.0, 5.0)], false).svg().contains("class=\"line"));
        assert!(chart(vec![(0.0, 5.0), (1.0, 5.0)], true).svg().contains("class=\"line"));
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        let axis = Axis::linear(0.03, 0.97);
        assert_eq!(
            axis.ticks.iter().map(|t| number(*t)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        let axis = Axis::log(40.0, 260.0);
        assert_eq!(axis.ticks, [50.0, 100.0, 200.0]);
        // Between 50 and 100 there is none of them.
        assert_eq!(Axis::log(56.0, 86.6).ticks, [60.0, 70.0, 80.0, 90.0]);
        assert!(Axis::log(5.0, 5.0).ticks.len() >= 2);
    }

    #[test]
    fn numbers_at_the_ends_of_what_there_is_have_a_drawing() {
        let least = f64::from_bits(1);
        for ends in [[0.0, least], [least, 1.7e308], [1.7e308; 2], [-1.7e308, 1.7e308], [least; 2]]
        {
            for log_y in [false, true] {
                let points = vec![(ends[0], ends[0]), (ends[1], ends[1]), (f64::MAX, ends[1])];
                let chart = Chart { log_x: log_y, ..chart(points, log_y) };
                let svg = chart.svg();
                assert!(svg.len() < 20_000, "{ends:?}: {} bytes", svg.len());
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn small_and_large_ticks_are_told_apart() {
        let told = |values: &[f64]| values.iter().map(|v| number(*v)).collect::<Vec<_>>();
        assert_eq!(told(&[0.0, -0.0, 3e-5, -2e-5]), ["0", "0", "3e-5", "-2e-5"]);
        assert_eq!(told(&[0.001, 0.00105, 12.5, -300.0]), ["0.001", "0.00105", "12.5", "-300"]);
        assert_eq!(told(&[10_000.0, 250_500.0, 1e6, 2.5e7]), ["10k", "250.5k", "1e6", "2.5e7"]);
        let axis = Axis::linear(0.0, 2.9e-5);
        assert_eq!(told(&axis.ticks).last().unwrap(), "3e-5");
    }

    #[test]
    fn a_long_line_keeps_its_extremes_and_little_else() {
        let mut points: Vec<(f64, f64)> = (0..200_000).map(|i| (f64::from(i), 1.0)).collect();
        (points[70_001].1, points[70_003].1) = (9.0, -3.0);
        let svg = chart(points, false).svg();
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
        let path = svg.split("class=\"line s0\" d=\"M").nth(1).unwrap().split('"').next().unwrap();
        let heights = path.split('L').map(|pair| pair.split(' ').nth(1).unwrap().parse::<f64>());
        let heights: Vec<f64> = heights.map(Result::unwrap).collect();
        let usual = heights[0];
        assert!(heights.iter().any(|y| *y < usual) && heights.iter().any(|y| *y > usual));
    }
}
