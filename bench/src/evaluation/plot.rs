//! Figures: grouped bars and lines, as SVG and PNG.
//!
//! Both are drawn by the same code on plotters' backends; scales and labels are our own, since a
//! figure here has categories or logarithms on its axes, spreads on its points and a font of its
//! own, whatever the machine has.

use std::path::Path;
use std::sync::Once;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::element::PathElement;
use plotters::prelude::{
    BLACK, BitMapBackend, Circle, DrawingArea, DrawingBackend, IntoDrawingArea, IntoFont, RGBColor,
    Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, TextStyle, register_font};

use super::summary::{Group, Summary, shown};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 520;
/// A PNG has so many pixels for one of these.
const PNG_SCALE: u32 = 2;
/// Colours that can be told apart by (nearly) everybody: Okabe and Ito's, and two more.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(110, 110, 110),
    RGBColor(200, 185, 20),
    RGBColor(120, 70, 20),
    RGBColor(20, 20, 20),
];
const GRID: RGBColor = RGBColor(222, 222, 222);
/// Values further apart than this are shown on a logarithmic axis.
const LOG_FROM: f64 = 30.0;
/// Bars beyond this many have no figures on them.
const LABELLED_BARS_MAX: usize = 60;
/// Room above the highest bar for such a figure, which stands on its end where bars are narrow.
const LABEL_ROOM: f64 = 34.0;

/// What is drawn.
pub struct Figure<'a> {
    /// Above it.
    pub title: &'a str,
    /// Under the x axis; may be empty.
    pub x_label: &'a str,
    /// Beside the y axis.
    pub y_label: &'a str,
    /// The data. Lines if the x axis has numbers, bars otherwise.
    pub group: &'a Group,
}

/// Draws FILE.svg and FILE.png.
pub fn draw(figure: &Figure, file: &Path) -> Result<()> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // It is part of this program: it cannot be a wrong one.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold());
    });
    let svg = file.with_extension("svg");
    let size = (WIDTH, HEIGHT);
    Canvas::new(SVGBackend::new(&svg, size).into_drawing_area(), 1).figure(figure)?;
    let png = file.with_extension("png");
    let size = (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE);
    Canvas::new(BitMapBackend::new(&png, size).into_drawing_area(), PNG_SCALE).figure(figure)
}

/// From values to pixels.
struct Scale {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// For values that go up to `most`, `least` the smallest above zero.
    fn over(values: &[f64], from_zero: bool, pixels: (f64, f64)) -> Self {
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let log = least > 0.0 && most / least > LOG_FROM;
        let (low, high) = if log {
            (below(least, least * 0.8), most * 1.15)
        } else if from_zero {
            (least.min(0.0), if most > 0.0 { most * 1.08 } else { 1.0 })
        } else {
            (least, if most > least { most } else { least + 1.0 })
        };
        Self { log, low, high, from: pixels.0, to: pixels.1 }
    }

    fn at(&self, value: f64) -> i32 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        (self.from + share * (self.to - self.from)).round() as i32
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.log {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            for power in self.low.log10().floor() as i32..=self.high.log10().ceil() as i32 {
                ticks.extend(steps.iter().map(|step| step * 10f64.powi(power)));
            }
        } else {
            let step = nice((self.high - self.low) / 6.0);
            let first = (self.low / step).ceil() as i64;
            ticks.extend((first..=(self.high / step).floor() as i64).map(|n| n as f64 * step));
        }
        ticks.retain(|tick| *tick >= self.low * 0.9999 && *tick <= self.high * 1.0001);
        ticks
    }
}

/// The largest of 1, 2, 5 and their tenfolds that is not above a value; `least` if that is too far.
fn below(value: f64, least: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let found = [5.0, 2.0, 1.0].map(|n| n * power).into_iter().find(|n| *n <= least);
    found.unwrap_or(power / 2.0)
}

/// The next of 1, 2, 2.5, 5 and their tenfolds.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0].map(|n| n * power).into_iter().find(|n| *n >= step).unwrap_or(10.0 * power)
}

/// A number with two digits that count.
fn brief(value: f64) -> String {
    if value.abs() >= 10.0 || value == 0.0 {
        return shown(value.round());
    }
    let power = 10f64.powf(1.0 - value.abs().log10().floor());
    shown((value * power).round() / power)
}

struct Canvas<DB: DrawingBackend> {
    area: DrawingArea<DB, Shift>,
    scale: u32,
}

/// Where the axes are.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl<DB: DrawingBackend> Canvas<DB>
where
    DB::ErrorType: 'static,
{
    fn new(area: DrawingArea<DB, Shift>, scale: u32) -> Self {
        Self { area, scale }
    }

    fn px(&self, length: f64) -> i32 {
        (length * f64::from(self.scale)).round() as i32
    }

    fn style(&self, size: f64, bold: bool) -> TextStyle<'static> {
        let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
        ("sans-serif", size * f64::from(self.scale), style).into_font().color(&BLACK)
    }

    fn text(&self, text: &str, at: (i32, i32), style: &TextStyle, h: HPos, v: VPos) -> Result<()> {
        let style = style.pos(Pos::new(h, v));
        self.area.draw(&Text::new(text.to_owned(), at, style)).map_err(|error| anyhow!("{error}"))
    }

    fn width(&self, text: &str, style: &TextStyle) -> i32 {
        self.area.estimate_text_size(text, style).map_or(0, |(width, _)| width.cast_signed())
    }

    fn line(&self, points: Vec<(i32, i32)>, colour: RGBColor, width: f64) -> Result<()> {
        let style = colour.stroke_width((width * f64::from(self.scale)).round().max(1.0) as u32);
        self.area.draw(&PathElement::new(points, style)).map_err(|error| anyhow!("{error}"))
    }

    fn block(&self, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
        self.area
            .draw(&Rectangle::new(corners, colour.filled()))
            .map_err(|error| anyhow!("{error}"))
    }

    fn figure(&self, figure: &Figure) -> Result<()> {
        let group = figure.group;
        self.area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        let middle = self.px(f64::from(WIDTH) / 2.0);
        let title = (middle, self.px(10.0));
        self.text(figure.title, title, &self.style(17.0, true), HPos::Center, VPos::Top)?;
        let legend =
            if group.series.len() > 1 { self.legend(&group.series)? } else { self.px(38.0) };
        let frame = Frame {
            left: f64::from(self.px(84.0)),
            right: f64::from(self.px(f64::from(WIDTH) - 22.0)),
            top: f64::from(legend + self.px(14.0)),
            bottom: f64::from(self.px(f64::from(HEIGHT) - 70.0)),
        };
        let spread = |x: &String| {
            let cells = group.series.iter().filter_map(|series| group.cell(series, x));
            cells.flat_map(|cell| [cell.min, cell.max]).collect::<Vec<_>>()
        };
        let values: Vec<f64> = group.xs.iter().flat_map(spread).collect();
        let numbers = group.numbers();
        let room = if numbers.is_none() { f64::from(self.px(LABEL_ROOM)) } else { 0.0 };
        let y = Scale::over(&values, true, (frame.bottom, frame.top + room));
        self.y_axis(&frame, &y, figure.y_label)?;
        match numbers {
            Some(numbers) => self.lines(&frame, &y, group, &numbers)?,
            None => self.bars(&frame, &y, group)?,
        }
        let axis = |v: f64| v.round() as i32;
        let corner = (axis(frame.left), axis(frame.bottom));
        self.line(
            vec![(corner.0, axis(frame.top)), corner, (axis(frame.right), corner.1)],
            BLACK,
            1.0,
        )?;
        let middle = axis(f64::midpoint(frame.left, frame.right));
        let below = (middle, corner.1 + self.px(LABEL_ROOM));
        self.text(figure.x_label, below, &self.style(14.0, false), HPos::Center, VPos::Top)?;
        self.area.present().map_err(|error| anyhow!("{error}"))
    }

    /// Draws the legend in as many rows as it takes; returns where it ends.
    fn legend(&self, series: &[String]) -> Result<i32> {
        let style = self.style(14.0, false);
        let (mark, gap) = (self.px(14.0), self.px(22.0));
        let limit = self.px(f64::from(WIDTH) - 40.0);
        let mut rows: Vec<(i32, Vec<usize>)> = vec![(0, Vec::new())];
        for (number, name) in series.iter().enumerate() {
            let width = mark + self.px(6.0) + self.width(name, &style) + gap;
            let row = rows.last_mut().expect("has one");
            if row.0 + width > limit && !row.1.is_empty() {
                rows.push((width, vec![number]));
            } else {
                row.0 += width;
                row.1.push(number);
            }
        }
        let mut top = self.px(40.0);
        for (width, members) in rows {
            let mut left = (self.px(f64::from(WIDTH)) - width + gap) / 2;
            for number in members {
                let colour = COLOURS[number % COLOURS.len()];
                self.block([(left, top), (left + mark, top + mark)], colour)?;
                left += mark + self.px(6.0);
                let at = (left, top + mark / 2);
                self.text(&series[number], at, &style, HPos::Left, VPos::Center)?;
                left += self.width(&series[number], &style) + gap;
            }
            top += self.px(22.0);
        }
        Ok(top)
    }

    fn y_axis(&self, frame: &Frame, y: &Scale, label: &str) -> Result<()> {
        let style = self.style(13.0, false);
        let (left, right) = (frame.left.round() as i32, frame.right.round() as i32);
        for tick in y.ticks() {
            let at = y.at(tick);
            self.line(vec![(left, at), (right, at)], GRID, 1.0)?;
            self.text(&shown(tick), (left - self.px(7.0), at), &style, HPos::Right, VPos::Center)?;
        }
        let label = format!("{label}{}", if y.log { ", logarithmic" } else { "" });
        let style = self.style(14.0, false).transform(FontTransform::Rotate270);
        let at = (self.px(10.0), f64::midpoint(frame.top, frame.bottom).round() as i32);
        // Turned, the text goes up: its middle is where its left edge would be.
        self.text(&label, at, &style, HPos::Center, VPos::Top)
    }

    fn spread(&self, x: i32, cell: Summary, y: &Scale, colour: RGBColor) -> Result<()> {
        if cell.min == cell.max {
            return Ok(());
        }
        let (low, high, half) = (y.at(cell.min), y.at(cell.max), self.px(3.0));
        self.line(vec![(x, low), (x, high)], colour, 1.0)?;
        for end in [low, high] {
            self.line(vec![(x - half, end), (x + half, end)], colour, 1.0)?;
        }
        Ok(())
    }

    fn bars(&self, frame: &Frame, y: &Scale, group: &Group) -> Result<()> {
        let slot = (frame.right - frame.left) / group.xs.len() as f64;
        let bottom = frame.bottom.round() as i32;
        // A category has places for the configurations that it has, side by side.
        let present = |x: &String| {
            let all = group.series.iter().enumerate();
            all.filter_map(|(number, series)| Some((number, group.cell(series, x)?)))
                .collect::<Vec<_>>()
        };
        let most = group.xs.iter().map(|x| present(x).len()).max().unwrap_or(1).max(1);
        let all: usize = group.xs.iter().map(|x| present(x).len()).sum();
        let width = (slot * 0.8 / most as f64).min(f64::from(self.px(70.0)));
        let mut labels = Vec::new();
        for (place, x) in group.xs.iter().enumerate() {
            let middle = frame.left + slot * (place as f64 + 0.5);
            let cells = present(x);
            let mut left = middle - width * cells.len() as f64 / 2.0;
            for (number, cell) in cells {
                let (from, to) = (left.round() as i32, (left + width * 0.92).round() as i32);
                let top = y.at(cell.median);
                self.block([(from, top), (to, bottom)], COLOURS[number % COLOURS.len()])?;
                let centre = i32::midpoint(from, to);
                self.spread(centre, cell, y, BLACK)?;
                labels.push((brief(cell.median), centre, y.at(cell.max).min(top) - self.px(3.0)));
                left += width;
            }
            self.category(x, middle.round() as i32, bottom, slot)?;
        }
        if all <= LABELLED_BARS_MAX {
            self.figures_on_bars(&labels, width)?;
        }
        Ok(())
    }

    /// Figures above bars; on their end if one is wider than a bar.
    fn figures_on_bars(&self, labels: &[(String, i32, i32)], width: f64) -> Result<()> {
        let style = self.style(11.0, false);
        let fit = labels.iter().all(|(text, ..)| f64::from(self.width(text, &style)) < width);
        for (text, centre, above) in labels {
            if fit {
                self.text(text, (*centre, *above), &style, HPos::Center, VPos::Bottom)?;
            } else {
                // Turned, a text's left end is the lower one.
                let turned = style.transform(FontTransform::Rotate270);
                self.text(text, (*centre, *above), &turned, HPos::Left, VPos::Center)?;
            }
        }
        Ok(())
    }

    /// A category's name below the axis, in lines that fit its place.
    fn category(&self, name: &str, middle: i32, bottom: i32, slot: f64) -> Result<()> {
        let style = self.style(if slot < f64::from(self.px(80.0)) { 11.0 } else { 13.0 }, false);
        let mut lines: Vec<String> = Vec::new();
        for word in name.split(' ') {
            match lines.last_mut() {
                Some(line)
                    if f64::from(self.width(&format!("{line} {word}"), &style)) < slot * 0.96 =>
                {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.into()),
            }
        }
        for (number, line) in lines.iter().enumerate() {
            let at = (middle, bottom + self.px(7.0 + 15.0 * number as f64));
            self.text(line, at, &style, HPos::Center, VPos::Top)?;
        }
        Ok(())
    }

    fn lines(&self, frame: &Frame, y: &Scale, group: &Group, numbers: &[f64]) -> Result<()> {
        let inset = f64::from(self.px(24.0));
        let x = Scale::over(numbers, false, (frame.left + inset, frame.right - inset));
        let style = self.style(13.0, false);
        let bottom = frame.bottom.round() as i32;
        // Where there are measurements, as far as there is room.
        let mut free = i32::MIN;
        for (number, name) in numbers.iter().zip(&group.xs) {
            let at = x.at(*number);
            self.line(vec![(at, bottom), (at, bottom + self.px(4.0))], BLACK, 1.0)?;
            let half = self.width(name, &style) / 2;
            if at - half > free {
                self.text(name, (at, bottom + self.px(8.0)), &style, HPos::Center, VPos::Top)?;
                free = at + half + self.px(8.0);
            }
        }
        for (place, series) in group.series.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let mut points = Vec::new();
            for (number, name) in numbers.iter().zip(&group.xs) {
                if let Some(cell) = group.cell(series, name) {
                    let point = (x.at(*number), y.at(cell.median));
                    self.spread(point.0, cell, y, colour)?;
                    points.push(point);
                }
            }
            for point in &points {
                let dot = Circle::new(*point, self.px(4.0), colour.filled());
                self.area.draw(&dot).map_err(|error| anyhow!("{error}"))?;
            }
            self.line(points, colour, 2.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_reaches_all_values_and_has_ticks() {
        for values in [vec![0.0, 3.0], vec![0.01, 900.0], vec![5.0, 5.0], vec![0.2, 0.3]] {
            let scale = Scale::over(&values, true, (500.0, 50.0));
            for value in &values {
                assert!((50..=500).contains(&scale.at(*value)), "{value} of {values:?}");
            }
            assert!((2..=12).contains(&scale.ticks().len()), "{:?} for {values:?}", scale.ticks());
        }
        assert!(Scale::over(&[0.01, 900.0], true, (500.0, 50.0)).log);
        assert!(!Scale::over(&[0.0, 900.0], true, (500.0, 50.0)).log);
    }
}
