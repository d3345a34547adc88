//! The wall times as a bar chart, in SVG.
//!
//! A label and a number stand at every bar, so there are no axes. The bars of one workload share a scale, those of
//! different workloads do not: the question is which of the three is shorter, and 12 short loops beside 4 long ones
//! would be too small to see.

use std::error::Error;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Report, Row};
use crate::workload::Mode;

const WIDTH: i32 = 960;
/// Where the bars begin: the labels end before it.
const LEFT: i32 = 270;
/// The longest bar; its number still fits beside it.
const LONGEST: f64 = 520.0;
const LINE: i32 = 24;
/// Space around and between.
const GAP: i32 = 14;

/// Draws the rows of all tables.
pub(crate) fn svg(report: &Report) -> Result<String, Box<dyn Error>> {
    let lines: usize = report.tables.iter().map(|table| table.rows.len() + 1).sum();
    let gaps: usize = report.tables.iter().map(|table| table.workloads().len()).sum();
    let height = GAP * 3 + LINE * (i32::try_from(lines)? + 1) + GAP * i32::try_from(gaps)?;
    let mut content = String::new();
    {
        let area = SVGBackend::with_string(&mut content, (u32::try_from(WIDTH)?, u32::try_from(height)?))
            .into_drawing_area();
        area.fill(&WHITE)?;
        let text =
            |size: i32, place| ("sans-serif", size).into_text_style(&area).pos(Pos::new(place, VPos::Center));
        let label = text(17, HPos::Right);
        let number = text(17, HPos::Left);
        let heading = text(20, HPos::Left);
        let mut y = GAP;
        let title = format!(
            "Wall time, concurrent-futures {}, {} build, {} cores",
            report.version, report.build, report.cores
        );
        area.draw_text(&title, &heading, (GAP, y + LINE / 2))?;
        y += LINE + GAP;
        for table in &report.tables {
            area.draw_text(&table.title, &heading, (GAP, y + LINE / 2))?;
            y += LINE;
            for workload in table.workloads() {
                let rows: Vec<_> = table.rows.iter().filter(|row| row.workload == workload).collect();
                let longest = rows.iter().filter(|row| !row.computed).filter_map(|row| row.wall_s);
                let longest = longest.fold(f64::MIN_POSITIVE, f64::max);
                for row in rows {
                    let middle = y + LINE / 2;
                    let end = LEFT + length(row, longest);
                    let bar = [(LEFT, y + 3), (end, y + LINE - 3)];
                    area.draw(&Rectangle::new(bar, colour(row).filled()))?;
                    area.draw_text(&row.name, &label, (LEFT - GAP / 2, middle))?;
                    area.draw_text(&caption(row), &number, (end + GAP / 2, middle))?;
                    y += LINE;
                }
                y += GAP;
            }
        }
        area.present()?;
    }
    Ok(content)
}

/// A computed time is drawn as the longest bar: it may be thousands of times longer.
#[expect(clippy::cast_possible_truncation, reason = "at most LONGEST")]
fn length(row: &Row, longest: f64) -> i32 {
    let share = row.wall_s.map_or(0.0, |seconds| (seconds / longest).min(1.0));
    (LONGEST * share).round() as i32
}

fn colour(row: &Row) -> RGBColor {
    match row.mode {
        _ if row.computed => RGBColor(210, 210, 210),
        Mode::Serial => RGBColor(150, 150, 150),
        Mode::Threads => RGBColor(46, 117, 182),
        Mode::Processes => RGBColor(217, 119, 38),
    }
}

fn caption(row: &Row) -> String {
    match row.wall_s {
        Some(seconds) if row.computed => format!("{seconds:.0} s (computed)"),
        Some(seconds) => format!("{seconds:.3} s"),
        None => "not measured".to_owned(),
    }
}
