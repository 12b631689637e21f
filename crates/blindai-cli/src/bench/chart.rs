//! Plots as SVG. Numbers become coordinates here; every text is escaped.

use std::fmt::Write as _;

/// A plot of 560 by 260 units, which stretches to the width it is given.
pub struct Plot {
    x: Axis,
    y: Axis,
    body: String,
    keys: Vec<(&'static str, String)>,
}

/// How values map to places, and which are named.
#[derive(Clone)]
pub struct Axis {
    min: f64,
    max: f64,
    ticks: Vec<(f64, String)>,
    label: &'static str,
}

impl Axis {
    /// From zero to at least `max`, marked at round numbers.
    pub fn linear(max: f64, label: &'static str, name: impl Fn(f64) -> String) -> Self {
        let step = round_step(max.max(LEAST) / 5.0);
        let count = (max / step).ceil().max(1.0) as u32;
        let ticks = (0..=count).map(|i| f64::from(i) * step);
        Self {
            min: 0.0,
            max: f64::from(count) * step,
            ticks: ticks.map(|tick| (tick, name(tick))).collect(),
            label,
        }
    }

    /// From zero to exactly `max`, marked at round numbers.
    pub fn tight(max: f64, label: &'static str, name: impl Fn(f64) -> String) -> Self {
        let mut axis = Self::linear(max, label, name);
        axis.max = max.max(LEAST);
        axis.ticks.retain(|(tick, _)| *tick <= max);
        axis
    }

    /// The decades around positive values; its coordinates are logarithms to base ten.
    pub fn decades(min: f64, max: f64, label: &'static str, name: impl Fn(f64) -> String) -> Self {
        let (low, high) = (min.log10(), max.log10());
        // A narrow range gets a little room, so that there is something between the edges.
        let room = ((high - low) * 0.03).max(0.02);
        let (low, high) = (low - room, high + room);
        let dense: &[f64] = match high - low {
            span if span < 0.7 => &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            span if span < 2.2 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let decades = (low.floor() as i32)..=(high.ceil() as i32);
        let values = decades.flat_map(|decade| dense.iter().map(move |m| m * 10f64.powi(decade)));
        let ticks = values.map(|value| (value.log10(), name(value)));
        Self {
            min: low,
            max: high,
            ticks: ticks.filter(|(at, _)| (low..=high).contains(at)).collect(),
            label,
        }
    }

    /// From zero to `max`, marked as given.
    pub fn marked(max: f64, label: &'static str, ticks: Vec<(f64, String)>) -> Self {
        Self {
            min: 0.0,
            max,
            ticks: ticks.into_iter().filter(|(at, _)| *at <= max).collect(),
            label,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.min) / (self.max - self.min);
        if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

impl Plot {
    pub fn new(x: Axis, y: Axis) -> Self {
        Self {
            x,
            y,
            body: String::new(),
            keys: Vec::new(),
        }
    }

    /// A line through the points, of a colour of the style sheet.
    pub fn line(mut self, class: &'static str, points: &[(f64, f64)]) -> Self {
        let path = self.path(points);
        self.draw(format_args!(r#"<path class="line {class}" d="{path}"/>"#));
        self
    }

    /// A line, and what is under it.
    pub fn area(mut self, class: &'static str, points: &[(f64, f64)]) -> Self {
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let (path, left, right) = (self.path(points), self.px(first.0), self.px(last.0));
            self.draw(format_args!(
                r#"<path class="area {class}" d="{path}L{right:.1} {BOTTOM}L{left:.1} {BOTTOM}Z"/>"#
            ));
        }
        self.line(class, points)
    }

    /// A bar from `left` to `right`, with what it says when it is pointed at.
    pub fn bar(mut self, left: f64, right: f64, height: f64, hint: &str) -> Self {
        let (left, right, top) = (self.px(left), self.px(right), self.py(height));
        let (width, tall) = ((right - left - 1.0).max(0.5), BOTTOM - top);
        let hint = escape(hint);
        self.draw(format_args!(
            r#"<rect class="bar" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{tall:.1}" rx="1"><title>{hint}</title></rect>"#
        ));
        self
    }

    /// A point with its name above it, to the left where there is room: curves rise to the right.
    pub fn point(mut self, class: &'static str, x: f64, y: f64, name: &str) -> Self {
        let (x, y, name) = (self.px(x), self.py(y), escape(name));
        let (anchor, at) = match x > LEFT + 110.0 {
            true => ("end", x - 6.0),
            false => ("start", x + 4.0),
        };
        let up = (y - 8.0).max(TOP + 8.0);
        self.draw(format_args!(
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.2"/><text class="name" x="{at:.1}" y="{up:.1}" text-anchor="{anchor}">{name}</text>"#
        ));
        self
    }

    /// A vertical mark with its name at the top.
    pub fn mark(mut self, x: f64, name: &str, row: u32) -> Self {
        let (x, name) = (self.px(x), escape(name));
        let y = TOP + 9.0 + 13.0 * f64::from(row);
        let (anchor, at) = if x > RIGHT - 90.0 {
            ("end", x - 5.0)
        } else {
            ("start", x + 5.0)
        };
        self.draw(format_args!(
            r#"<path class="mark" d="M{x:.1} {TOP}V{BOTTOM}"/><text class="name" x="{at:.1}" y="{y:.1}" text-anchor="{anchor}">{name}</text>"#
        ));
        self
    }

    /// A dashed level across the plot.
    pub fn level(mut self, y: f64) -> Self {
        let y = self.py(y);
        self.draw(format_args!(
            r#"<path class="mark" d="M{LEFT} {y:.1}H{RIGHT}"/>"#
        ));
        self
    }

    /// Names a colour above the plot.
    pub fn key(mut self, class: &'static str, name: &str) -> Self {
        self.keys.push((class, escape(name)));
        self
    }

    /// The figure, with its title and a sentence on how to read it.
    pub fn figure(&self, title: &str, note: &str) -> String {
        let (title, note) = (escape(title), escape(note));
        let mut keys = String::new();
        for (class, name) in &self.keys {
            let _ = write!(keys, r#"<span class="key {class}">{name}</span>"#);
        }
        let (grid, body) = (self.grid(), &self.body);
        format!(
            r#"<figure><figcaption><h2>{title}</h2><p>{note}</p><div class="keys">{keys}</div></figcaption><svg viewBox="0 0 560 260" role="img" aria-label="{title}">{grid}{body}</svg></figure>"#
        )
    }

    fn grid(&self) -> String {
        let mut out = String::new();
        for (value, name) in &self.y.ticks {
            let (y, name) = (self.py(*value), escape(name));
            let _ = write!(
                out,
                r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#,
                LEFT - 8.0,
                y + 3.5
            );
        }
        for (value, name) in &self.x.ticks {
            let (x, name) = (self.px(*value), escape(name));
            let _ = write!(
                out,
                r#"<path class="tick" d="M{x:.1} {BOTTOM}v4"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#,
                BOTTOM + 17.0
            );
        }
        let (x, y) = (escape(self.x.label), escape(self.y.label));
        let _ = write!(
            out,
            r#"<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/><text class="label" x="{:.1}" y="256" text-anchor="middle">{x}</text><text class="label" x="{LEFT}" y="11" text-anchor="start">{y}</text>"#,
            f64::midpoint(LEFT, RIGHT)
        );
        out
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (i, &(x, y)) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.px(x), self.py(y));
        }
        path
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (RIGHT - LEFT)
    }

    fn py(&self, y: f64) -> f64 {
        BOTTOM - self.y.place(y) * (BOTTOM - TOP)
    }

    fn draw(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(element);
    }
}

/// Text as HTML shows it, also within quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c != '\n' && blindai_core::is_steering(c) => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// The next of 1, 2, 2.5, 5, 10 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps
        .into_iter()
        .find(|step| step * power >= least * 0.999_999);
    step.unwrap_or(10.0) * power
}

/// What is less is zero to an axis.
const LEAST: f64 = 1e-9;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 548.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 214.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_escaped() {
        let forged = "<script>&\"'\u{1b}";
        let safe = "&lt;script&gt;&amp;&quot;&#39;?";
        assert_eq!(escape(forged), safe);
        let axis = || Axis::marked(1.0, "x", vec![(0.5, forged.to_owned())]);
        let figure = Plot::new(axis(), axis())
            .bar(0.0, 1.0, 1.0, forged)
            .point("p50", 0.5, 0.5, forged)
            .mark(0.5, forged, 0)
            .key("p50", forged)
            .figure(forged, forged);
        assert!(!figure.contains(forged) && !figure.contains("<script"));
        // Two ticks, bar, point, mark, key, title twice, note.
        assert_eq!(figure.matches(safe).count(), 9);
    }

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        for max in [0.0, 0.003, 0.9, 7.0, 99.0, 15_234.0] {
            let axis = Axis::linear(max, "", |value| value.to_string());
            assert!(
                axis.max >= max && (2..=7).contains(&axis.ticks.len()),
                "{max}"
            );
        }
        for (min, max) in [(0.1, 0.1), (0.1, 0.15), (0.1, 1.0), (0.05, 3000.0)] {
            let axis = Axis::decades(min, max, "", |value| value.to_string());
            assert!(
                (1..=12).contains(&axis.ticks.len()),
                "{min} {max}: {}",
                axis.ticks.len()
            );
        }
    }

    #[test]
    fn no_value_leaves_the_plot() {
        let axis = Axis::linear(1.0, "", |value| value.to_string());
        let plot = Plot::new(axis.clone(), axis);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 5.0] {
            assert!((LEFT..=RIGHT).contains(&plot.px(value)));
            assert!((TOP..=BOTTOM).contains(&plot.py(value)));
        }
    }
}
