//! The table and the JSON rows.

use std::fmt::Write as _;

use serde::Serialize;

use crate::stats::Median;

/// One measured row. The first eight fields are what other programs read.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: String,
    pub(crate) ours: f64,
    pub(crate) peer_name: String,
    pub(crate) peer: f64,
    pub(crate) ratio: f64,
    pub(crate) bar: String,
    pub(crate) holds: bool,
    /// Least and most of the rounds behind `ours`.
    pub(crate) ours_range: [f64; 2],
    /// Least and most of the rounds behind `peer`.
    pub(crate) peer_range: [f64; 2],
    pub(crate) rounds: usize,
    #[serde(skip)]
    pub(crate) ours_spread: f64,
    #[serde(skip)]
    pub(crate) peer_spread: f64,
}

impl Row {
    pub(crate) fn new(
        name: &'static str,
        unit: String,
        ours: Median,
        peer: (String, Median),
    ) -> Self {
        let (peer_name, peer) = peer;
        Self {
            name,
            unit,
            ours: ours.value,
            peer_name,
            peer: peer.value,
            ratio: ours.value / peer.value,
            bar: String::new(),
            holds: false,
            ours_range: [ours.least, ours.most],
            peer_range: [peer.least, peer.most],
            rounds: 0,
            ours_spread: ours.spread_percent(),
            peer_spread: peer.spread_percent(),
        }
    }
}

/// Lays rows out in columns.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["name", "unit", "ours", "±%", "peer", "peer's", "±%", "ratio", "bar", "holds"]
        .map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|row| {
        [
            row.name.to_owned(),
            row.unit.clone(),
            figure(row.ours),
            format!("{:.0}", row.ours_spread),
            row.peer_name.clone(),
            figure(row.peer),
            format!("{:.0}", row.peer_spread),
            format!("{:.2}", row.ratio),
            row.bar.clone(),
            if row.holds { "yes" } else { "NO" }.to_owned(),
        ]
    }));
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let pad = widths[column] - cell.chars().count();
            // Names to the left, figures to the right.
            let (before, after) = if matches!(column, 0 | 1 | 4 | 9) { (0, pad) } else { (pad, 0) };
            write!(text, "{}{cell}{}  ", " ".repeat(before), " ".repeat(after))
                .expect("writing to a String succeeds");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Three or more significant digits, thousands grouped.
fn figure(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::{Row, figure, table};
    use crate::stats::Median;

    fn row() -> Row {
        let ours = Median::of(&[2.0, 2.0, 4.0]);
        let peer = Median::of(&[4.0]);
        Row {
            bar: "<= 1.5".into(),
            holds: true,
            rounds: 3,
            ..Row::new("call", "ns".into(), ours, ("mpsc".into(), peer))
        }
    }

    #[test]
    fn figures_are_grouped_by_thousands() {
        assert_eq!(
            [0.5, 99.994, 100.0, 1_234.0, 1_234_567.0].map(figure),
            ["0.50", "99.99", "100", "1,234", "1,234,567"]
        );
    }

    #[test]
    fn a_row_has_the_fields_other_programs_read() {
        let json = serde_json::to_value(row()).unwrap();
        for field in ["name", "unit", "ours", "peer_name", "peer", "ratio", "bar", "holds"] {
            assert!(!json[field].is_null(), "{field} is missing in {json}");
        }
        assert_eq!(json["ratio"], 0.5);
    }

    #[test]
    fn columns_line_up() {
        let text = table(&[row()]);
        let lines: Vec<&str> = text.lines().collect();
        let place = |line: &str, word: &str| line.find(word).map(|at| line[..at].chars().count());
        assert_eq!(place(lines[0], "holds"), place(lines[1], "yes"));
    }
}
