//! The ratios as a chart, in SVG: how much worse than ours everybody is, on a logarithmic axis.
//!
//! Every row is a line. Ours stands at 1, a peer at its figure divided by ours (rates the other way round), so that right
//! of the middle line ours is better. The best peer is named, the others are dots. A tick shows where the best peer would
//! stand if ours had just reached a goal that is a multiple of the best.

use std::error::Error;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Line, Report, number};
use crate::suite::{Better, Kind};

const WIDTH: i32 = 1130;
/// Where the axis begins; the labels end before it.
const LEFT: i32 = 490;
/// Where it ends; names of the best fit behind it.
const RIGHT: i32 = 1000;
const LINE: i32 = 34;
const GAP: i32 = 16;
/// The ends of the axis. What is beyond is drawn at its end.
const LEAST: f64 = 0.25;
const MOST: f64 = 200.0;

const OURS: RGBColor = RGBColor(46, 117, 182);
const WORSE: RGBColor = RGBColor(170, 170, 170);
const BEST: RGBColor = RGBColor(60, 60, 60);
const BETTER: RGBColor = RGBColor(200, 60, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);
const GOAL: RGBColor = RGBColor(70, 150, 80);

pub(crate) fn svg(report: &Report) -> Result<String, Box<dyn Error>> {
    let top = GAP + LINE * 3;
    let bottom = top + LINE * i32::try_from(report.lines.len())?;
    let height = bottom + LINE * 2 + GAP;
    let mut content = String::new();
    {
        let area = SVGBackend::with_string(&mut content, (u32::try_from(WIDTH)?, u32::try_from(height)?))
            .into_drawing_area();
        area.fill(&WHITE)?;
        let text = |size: i32, colour: &'static RGBColor, place| {
            ("sans-serif", size).into_text_style(&area).color(colour).pos(Pos::new(place, VPos::Center))
        };
        let title = format!("concurrent-futures beside its peers: {}", report.name);
        area.draw_text(&title, &text(20, &BLACK, HPos::Left), (GAP, GAP + LINE / 2))?;
        area.draw_text(&report.heading(), &text(13, &BEST, HPos::Left), (GAP, GAP + LINE + LINE / 3))?;
        for (mark, name) in [
            (0.25, "4× better"),
            (0.5, "2×"),
            (1.0, "ours"),
            (2.0, "2×"),
            (4.0, "4× worse"),
            (10.0, "10×"),
            (100.0, "100×"),
        ] {
            let x = place(mark);
            let colour = if mark == 1.0 { OURS } else { GRID };
            area.draw(&PathElement::new(
                [(x, top - 4), (x, bottom)],
                colour.stroke_width(if mark == 1.0 { 3 } else { 1 }),
            ))?;
            area.draw_text(name, &text(13, &BEST, HPos::Center), (x, top - LINE / 2))?;
        }
        for (index, line) in report.lines.iter().enumerate() {
            let y = top + LINE * i32::try_from(index)? + LINE / 2;
            area.draw_text(&label(line), &text(14, &BLACK, HPos::Right), (LEFT - GAP, y))?;
            area.draw(&PathElement::new([(LEFT, y), (RIGHT, y)], GRID.stroke_width(1)))?;
            let Some(ours) = line.ours().and_then(|ours| ours.median()) else {
                area.draw_text("ours: not measured", &text(13, &BETTER, HPos::Left), (RIGHT + GAP / 2, y))?;
                continue;
            };
            let worse = |figure: f64| match line.row.better {
                Better::Lower => figure / ours,
                Better::Higher => ours / figure,
            };
            if let Some(goal) = line.row.goal.of_best {
                let x = place(if line.row.better == Better::Lower { 1.0 / goal } else { goal });
                area.draw(&PathElement::new([(x, y - 9), (x, y + 9)], GOAL.stroke_width(2)))?;
            }
            for peer in line.measured.iter().filter(|measured| measured.kind == Kind::Peer) {
                if let Some(figure) = peer.median() {
                    area.draw(&Circle::new((place(worse(figure)), y), 4, WORSE.filled()))?;
                }
            }
            let own = format!("{} {}", number(ours), line.row.unit);
            let Some((name, figure)) = line.best(Kind::Peer) else {
                area.draw_text(&own, &text(13, &OURS, HPos::Left), (RIGHT + GAP / 2, y))?;
                continue;
            };
            let ratio = worse(figure);
            let colour: &'static RGBColor = if ratio < 1.0 { &BETTER } else { &BEST };
            area.draw(&Circle::new((place(ratio), y), 5, colour.filled()))?;
            let caption = format!("{name} {}×", number(ratio));
            area.draw_text(&caption, &text(13, colour, HPos::Left), (place(ratio) + 8, y - 11))?;
            area.draw_text(&own, &text(13, &OURS, HPos::Left), (RIGHT + GAP / 2, y))?;
        }
        let legend = "Line at 1: ours, its figure at the right. Dark dot: the best peer (red where it is better than ours). \
                      Grey: the other peers. Green tick: the goal.";
        area.draw_text(legend, &text(13, &BEST, HPos::Left), (GAP, bottom + LINE))?;
        area.present()?;
    }
    Ok(content)
}

/// Where a ratio stands; beyond the ends of the axis, at the end.
fn place(ratio: f64) -> i32 {
    let share = (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and the width")]
    let offset = (share * f64::from(RIGHT - LEFT)).round() as i32;
    LEFT + offset
}

/// Short enough for the place left of the axis.
fn label(line: &Line) -> String {
    const LONGEST: usize = 60;
    let what = &line.row.what;
    let short: String = what.chars().take(LONGEST).collect();
    let more = if short.len() < what.len() { "…" } else { "" };
    format!("{} {short}{more}", line.row.id)
}
