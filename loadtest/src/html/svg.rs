//! Lines and bars as SVG inside a page, each with its words, its legend and its table.
//!
//! Series differ by dashes as well as by colour, and every figure is there as text, too. Drawn for a
//! width of [`WIDTH`] units, so that letters stay readable on a phone, where a unit is less than a pixel.

use std::fmt::Write as _;

use super::scale::Scale;
use crate::text::{escape, number, short};

/// Units of the drawing's width.
const WIDTH: f64 = 420.0;
/// Of a line plot's height.
const HEIGHT: f64 = 250.0;
/// Left of the plot, for the numbers of the y axis.
const LEFT: f64 = 48.0;
/// Right of it, for half a number of the x axis.
const RIGHT: f64 = 18.0;
/// Of a letter beside an axis, on a phone.
const LETTER: f64 = 7.5;
/// Above it.
const TOP: f64 = 12.0;
/// Below it, for the numbers and the name of the x axis.
const BOTTOM: f64 = 38.0;
/// Rows of the table beside a line plot.
const TABLE_ROWS_MAX: usize = 12;
/// Ways of drawing a line that `style.css` tells apart.
const STYLES: usize = 6;
/// A bar with its words above it.
const BAR_ROW: f64 = 34.0;

/// One line. None: nothing was told there.
pub struct Series {
    /// Its name.
    pub name: String,
    /// In the order of x.
    pub points: Vec<(f64, Option<f64>)>,
}

/// What the reader is told around a drawing.
pub struct Words {
    /// Names the figure in links; of `a-z` and `-`.
    pub id: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What is seen, in a sentence or two.
    pub what: String,
    /// Why there is nothing to see, if so.
    pub empty: &'static str,
}

/// Lines over x.
pub struct Lines {
    /// What it is.
    pub words: Words,
    /// The name of the x axis, and its scale.
    pub x: (&'static str, Scale),
    /// The same of y.
    pub y: (&'static str, Scale),
    /// At most [`STYLES`].
    pub series: Vec<Series>,
    /// Instants that explain what is seen.
    pub marks: Vec<(f64, &'static str)>,
}

/// Bars beside their words.
pub struct Bars {
    /// What it is.
    pub words: Words,
    /// What a bar counts.
    pub unit: &'static str,
    /// The names of one or two kinds of bars.
    pub kinds: Vec<&'static str>,
    /// Words, and a value of each kind.
    pub rows: Vec<(String, Vec<f64>)>,
}

impl Lines {
    /// The figure.
    pub fn figure(&self) -> String {
        let told = |series: &Series| series.points.iter().any(|(_, y)| y.is_some());
        if !self.series.iter().any(told) {
            return self.words.nothing();
        }
        let mut drawing = String::new();
        self.axes(&mut drawing);
        for (style, series) in self.series.iter().enumerate() {
            let path = self.path(series);
            let style = style % STYLES;
            let _infallible = write!(drawing, "<path class=\"line s{style}\" d=\"{path}\"/>");
        }
        for (place, (at, what)) in self.marks.iter().enumerate() {
            self.mark(place, *at, what, &mut drawing);
        }
        let names: Vec<&str> = self.series.iter().map(|it| it.name.as_str()).collect();
        let legend = legend(&names, |style| {
            format!("<path class=\"line s{style}\" d=\"M2,6H34\"/>")
        });
        self.words.figure(HEIGHT, &drawing, &legend, &self.table())
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let right = LEFT + self.x.1.part(x) * (WIDTH - LEFT - RIGHT);
        let down = TOP + (1.0 - self.y.1.part(y)) * (HEIGHT - TOP - BOTTOM);
        (right, down)
    }

    fn axes(&self, drawing: &mut String) {
        let (left, right, low) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, words) in self.y.1.ticks() {
            let (_, y) = self.at(0.0, value);
            let _infallible = write!(
                drawing,
                "<path class=\"grid\" d=\"M{left:.1},{y:.1}H{right:.1}\"/><text class=\"tick\" x=\"{:.1}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                y + 4.0,
                escape(&words)
            );
        }
        for (value, words) in self.x.1.ticks() {
            let (x, _) = self.at(value, 0.0);
            // Wholly inside the drawing.
            let half = LETTER / 2.0 * f64::from(u32::try_from(words.chars().count()).unwrap_or(0));
            let _infallible = write!(
                drawing,
                "<path class=\"grid\" d=\"M{x:.1},{low:.1}v4\"/><text class=\"tick\" x=\"{:.1}\" \
                 y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x.min(WIDTH - half),
                low + 17.0,
                escape(&words)
            );
        }
        let _infallible = write!(
            drawing,
            "<text class=\"tick\" x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            HEIGHT - 5.0,
            escape(self.x.0)
        );
    }

    fn mark(&self, place: usize, at: f64, what: &str, drawing: &mut String) {
        let (x, _) = self.at(at, 0.0);
        // On the side where there is more room; the next one is a line lower.
        let (anchor, shift) = match x > WIDTH / 2.0 {
            true => ("end", -4.0),
            false => ("start", 4.0),
        };
        let y = TOP + 12.0 + 14.0 * f64::from(u32::try_from(place).unwrap_or(0));
        let _infallible = write!(
            drawing,
            "<path class=\"when\" d=\"M{x:.1},{TOP:.1}V{:.1}\"/><text class=\"mark\" x=\"{:.1}\" \
             y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            HEIGHT - BOTTOM,
            x + shift,
            escape(what)
        );
    }

    /// Lifts the pen where nothing was told. A lonely point is a dot.
    fn path(&self, series: &Series) -> String {
        let mut path = String::new();
        let mut drawn = false;
        for (x, y) in &series.points {
            let Some(y) = y.filter(|y| y.is_finite()) else {
                drawn = false;
                continue;
            };
            let (x, y) = self.at(*x, y);
            let _infallible = match drawn {
                true => write!(path, "L{x:.1},{y:.1}"),
                false => write!(path, "M{x:.1},{y:.1}h.1"),
            };
            drawn = true;
        }
        path
    }

    fn table(&self) -> String {
        let longest = self.series.iter().map(|it| it.points.len()).max();
        let longest = longest.unwrap_or(0);
        let each = longest.div_ceil(TABLE_ROWS_MAX).max(1);
        let heads: Vec<&str> = self.series.iter().map(|it| it.name.as_str()).collect();
        let rows = (0..longest).step_by(each).map(|row| {
            let point = |series: &Series| series.points.get(row).copied();
            let x = self.series.iter().find_map(point).map_or(0.0, |(x, _)| x);
            let value = |series: &Series| match point(series) {
                Some((_, Some(y))) => number(y),
                _ => "–".into(),
            };
            let values: Vec<String> = self.series.iter().map(value).collect();
            (self.x.1.word(x), values)
        });
        let caption = match each {
            1 => self.y.0.to_owned(),
            each => format!("{}; one of {each} points", self.y.0),
        };
        table(&caption, self.x.0, &heads, rows)
    }
}

impl Bars {
    /// The figure.
    pub fn figure(&self) -> String {
        let values = || self.rows.iter().flat_map(|(_, values)| values);
        let most = values().copied().fold(0.0_f64, f64::max);
        if most <= 0.0 {
            return self.words.nothing();
        }
        let mut drawing = String::new();
        let mut y = 0.0;
        for (words, values) in &self.rows {
            let _infallible = write!(
                drawing,
                "<text x=\"0\" y=\"{:.1}\">{}</text>",
                y + 14.0,
                escape(words)
            );
            for (style, value) in values.iter().enumerate() {
                let width = (value / most * (WIDTH - 66.0)).clamp(0.0, WIDTH);
                let top = y + 19.0 + 15.0 * f64::from(u32::try_from(style).unwrap_or(0));
                let _infallible = write!(
                    drawing,
                    "<rect class=\"bar s{style}\" x=\"1\" y=\"{top:.1}\" width=\"{width:.1}\" \
                     height=\"11\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    width + 7.0,
                    top + 10.0,
                    short(*value)
                );
            }
            y += BAR_ROW + 15.0 * f64::from(u32::try_from(values.len()).unwrap_or(1) - 1);
        }
        let legend = match self.kinds.len() {
            1 => String::new(),
            _ => legend(&self.kinds, |style| {
                format!("<rect class=\"bar s{style}\" x=\"2\" y=\"1\" width=\"32\" height=\"10\"/>")
            }),
        };
        let rows = self.rows.iter().map(|(words, values)| {
            let values = values.iter().map(|value| number(*value)).collect();
            (words.clone(), values)
        });
        let table = table(self.unit, "", &self.kinds, rows);
        self.words.figure(y, &drawing, &legend, &table)
    }
}

impl Words {
    fn figure(&self, height: f64, drawing: &str, legend: &str, table: &str) -> String {
        let id = self.id;
        let (title, what) = (escape(self.title), escape(&self.what));
        format!(
            "<figure class=\"plot\" id=\"{id}\"><figcaption><h3>{title}</h3><p>{what}</p></figcaption>\
             <svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {WIDTH} {height}\">\
             <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{what}</desc>{drawing}</svg>{legend}\
             <details><summary>The same as a table</summary><div class=\"scroll\">{table}</div></details>\
             </figure>\n"
        )
    }

    /// A figure that says why it shows nothing.
    fn nothing(&self) -> String {
        format!(
            "<figure class=\"plot\" id=\"{}\"><figcaption><h3>{}</h3><p>{}</p></figcaption></figure>\n",
            self.id,
            escape(self.title),
            escape(self.empty)
        )
    }
}

fn legend(names: &[&str], sample: impl Fn(usize) -> String) -> String {
    let item = |(style, name): (usize, &&str)| {
        format!(
            "<li><svg viewBox=\"0 0 36 12\" aria-hidden=\"true\">{}</svg>{}</li>",
            sample(style % STYLES),
            escape(name)
        )
    };
    let items: String = names.iter().enumerate().map(item).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// A table whose first column names the row.
pub fn table(
    caption: &str,
    first: &str,
    heads: &[&str],
    rows: impl Iterator<Item = (String, Vec<String>)>,
) -> String {
    let head = |name: &&str| format!("<th scope=\"col\">{}</th>", escape(name));
    let heads: String = std::iter::once(&first).chain(heads).map(head).collect();
    let row = |(name, cells): (String, Vec<String>)| {
        let cell = |cell: &String| format!("<td>{}</td>", escape(cell));
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(&name))
    };
    let rows: String = rows.map(row).collect();
    format!(
        "<table><caption>{}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
        escape(caption)
    )
}
